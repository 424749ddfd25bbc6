// SPDX-License-Identifier: Apache-2.0

package security

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var flawTest = regexp.MustCompile(`^TestCVE_(\d{4})_(\d{4,})_[A-Z]`)

// replayed returns the comments of the tests of this folder by the number of
// the flaw that a test replays.
func replayed(t *testing.T) map[string][]string {
	t.Helper()
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string][]string{}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range f.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if m := flawTest.FindStringSubmatch(fn.Name.Name); m != nil {
				number := "CVE-" + m[1] + "-" + m[2]
				tests[number] = append(tests[number], fn.Doc.Text())
			} else if strings.HasPrefix(fn.Name.Name, "TestCVE") {
				t.Errorf("%s: want a name such as TestCVE_2019_5736_RuntimeOnTheHostIsNotOverwritten", fn.Name.Name)
			}
		}
	}
	return tests
}

func TestEveryKnownFlawIsReplayedOrLeftOutWithAReason(t *testing.T) {
	list, err := os.ReadFile("flaws.txt")
	if err != nil {
		t.Fatal(err)
	}
	tests := replayed(t)
	var numbers []string
	for line := range strings.Lines(string(list)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		number, reason, leftOut := strings.Cut(line, " ")
		numbers = append(numbers, number)
		switch comments := tests[number]; {
		case leftOut && len(comments) > 0:
			t.Errorf("%s has a test, although flaws.txt says that it cannot apply: %s", number, reason)
		case !leftOut && len(comments) == 0:
			t.Errorf("%s has no test, and flaws.txt gives no reason", number)
		case slices.ContainsFunc(comments, func(c string) bool { return strings.Count(c, ".") < 2 }):
			t.Errorf("the comment of the test of %s does not say what the flaw was and what holds", number)
		}
	}
	if !slices.IsSorted(numbers) {
		t.Error("flaws.txt is not sorted")
	}
	for number := range tests {
		if !slices.Contains(numbers, number) {
			t.Errorf("%s has a test and is not in flaws.txt", number)
		}
	}
}
