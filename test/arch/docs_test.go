package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func read(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(rootDir(t), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

var testName = regexp.MustCompile(`\bTest[A-Z]\w+`)

// A promise that is proved by a test that does not exist is not proved.
func TestDocumentsNameOnlyTestsThatExist(t *testing.T) {
	exist := map[string]bool{}
	for _, f := range sources(t) {
		if f.test {
			for name := range f.ast.Scope.Objects {
				exist[name] = true
			}
		}
	}
	for _, doc := range []string{"README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/sessions.md"} {
		for _, name := range testName.FindAllString(read(t, doc), -1) {
			if !exist[name] {
				t.Errorf("%s names %s, which does not exist", doc, name)
			}
		}
	}
}

func TestReadmeNamesATestForEachPromise(t *testing.T) {
	_, table, found := strings.Cut(read(t, "README.md"), "| Promise | Test |\n|---|---|\n")
	if !found {
		t.Fatal("README.md has no table of promises")
	}
	rows := 0
	for line := range strings.Lines(table) {
		if !strings.HasPrefix(line, "|") {
			break
		}
		rows++
		if !testName.MatchString(line) {
			t.Errorf("README: a promise without its test: %s", line)
		}
	}
	if rows == 0 {
		t.Error("README: the table of promises is empty")
	}
}

// imported are the modules that our own packages import, tests included.
func imported(t *testing.T) map[string]bool {
	t.Helper()
	modules := map[string]bool{}
	known := required(t)
	for _, f := range sources(t) {
		for _, i := range f.ast.Imports {
			path := strings.Trim(i.Path.Value, `"`)
			best := ""
			for _, module := range known {
				if within(path, module) && len(module) > len(best) {
					best = module
				}
			}
			if best != "" {
				modules[best] = true
			}
		}
	}
	return modules
}

// required are all modules that go.mod lists.
func required(t *testing.T) []string {
	t.Helper()
	var list []string
	for line := range strings.Lines(read(t, "go.mod")) {
		fields := strings.Fields(line)
		if len(fields) >= 2 && strings.HasPrefix(line, "\t") && strings.HasPrefix(fields[1], "v") {
			list = append(list, fields[0])
		}
	}
	if len(list) == 0 {
		t.Fatal("go.mod: no required module found")
	}
	return list
}

var documented = regexp.MustCompile("(?m)^\\| `([^`]+)`")

func TestEveryDependencyIsExplained(t *testing.T) {
	var explained []string
	for _, m := range documented.FindAllStringSubmatch(read(t, "docs/dependencies.md"), -1) {
		explained = append(explained, m[1])
	}
	for module := range imported(t) {
		if !slices.Contains(explained, module) {
			t.Errorf("docs/dependencies.md does not say why %s is used", module)
		}
	}
	known := required(t)
	for _, module := range explained {
		if !slices.Contains(known, module) {
			t.Errorf("docs/dependencies.md explains %s, which go.mod does not have", module)
		}
	}
}
