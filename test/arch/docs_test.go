// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"io/fs"
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

// pages returns all documents: README.md, CONTRIBUTING.md, SECURITY.md and
// those below docs/, by their paths in the repository.
func pages(t *testing.T) []string {
	t.Helper()
	list := []string{"README.md", "CONTRIBUTING.md", "SECURITY.md"}
	root := rootDir(t)
	err := filepath.WalkDir(filepath.Join(root, "docs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".md" {
			return err
		}
		rel, err := filepath.Rel(root, path)
		list = append(list, rel)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// link is a link in a document: [text](target), including images.
var link = regexp.MustCompile(`\]\(([^()\s]+)\)`)

// links returns the targets that a document links to, with the fragment after
// "#". Addresses of other hosts are left out.
func links(t *testing.T, page string) []string {
	t.Helper()
	var list []string
	for _, m := range link.FindAllStringSubmatch(read(t, page), -1) {
		target := m[1]
		switch {
		case strings.Contains(target, "://"), strings.HasPrefix(target, "mailto:"):
			continue
		case strings.HasPrefix(target, "#"):
			list = append(list, page+target)
		default:
			list = append(list, filepath.Join(filepath.Dir(page), target))
		}
	}
	return list
}

var (
	heading   = regexp.MustCompile(`(?m)^#+ (.*)$`)
	codeBlock = regexp.MustCompile("(?ms)^ *```.*?^ *```$")
	notInSlug = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors returns the fragments by which a document's headings can be linked.
// GitHub's rules form them.
func anchors(t *testing.T, page string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(codeBlock.ReplaceAllString(read(t, page), ""), -1) {
		text := notInSlug.ReplaceAllString(strings.ToLower(m[1]), "")
		names[strings.ReplaceAll(text, " ", "-")] = true
	}
	return names
}

func TestLinksBetweenDocumentsLeadSomewhere(t *testing.T) {
	for _, page := range pages(t) {
		for _, target := range links(t, page) {
			path, anchor, _ := strings.Cut(target, "#")
			if _, err := os.Stat(filepath.Join(rootDir(t), path)); err != nil {
				t.Errorf("%s links to %s, which does not exist", page, path)
				continue
			}
			if anchor != "" && !anchors(t, path)[anchor] {
				t.Errorf("%s links to %s, which has no heading %q", page, path, anchor)
			}
		}
	}
}

// The front page must be short. Every page of docs/ must be linked from it and
// from the index.
func TestReadmeIsShortAndEveryPageIsLinked(t *testing.T) {
	if n := strings.Count(read(t, "README.md"), "\n"); n > 130 {
		t.Errorf("README.md has %d lines, 130 at most", n)
	}
	readme, index := links(t, "README.md"), links(t, "docs/README.md")
	if !slices.Contains(readme, "docs/README.md") {
		t.Error("README.md does not link to docs/README.md")
	}
	for _, page := range pages(t) {
		if filepath.Dir(page) == "docs" && page != "docs/README.md" && !slices.Contains(readme, page) {
			t.Errorf("README.md does not link to %s", page)
		}
		if strings.HasPrefix(page, "docs/") && page != "docs/README.md" && !slices.Contains(index, page) {
			t.Errorf("docs/README.md does not link to %s", page)
		}
	}
}

// Documents refer to tests as proofs, so the tests must exist.
func TestDocumentsNameOnlyTestsThatExist(t *testing.T) {
	exist := map[string]bool{}
	for _, f := range sources(t) {
		if f.test {
			for name := range f.ast.Scope.Objects {
				exist[name] = true
			}
		}
	}
	for _, doc := range pages(t) {
		for _, name := range testName.FindAllString(read(t, doc), -1) {
			if !exist[name] {
				t.Errorf("%s names %s, which does not exist", doc, name)
			}
		}
	}
}

// notUsed are words for which docs/glossary.md names a more precise term.
var (
	notUsed = regexp.MustCompile(`(?i)\b(tells?|told|telling|whoever|whom|somebody|anybody|everybody|someone else)\b`)
	code    = regexp.MustCompile("(?s)```.*?```|`[^`\n]*`")
)

func TestPagesUseTheWordsOfTheGlossary(t *testing.T) {
	apart := []string{"docs/glossary.md", "docs/benchmarks.md", "docs/differ.md"}
	for _, page := range pages(t) {
		if page != "README.md" && filepath.Dir(page) != "docs" || slices.Contains(apart, page) {
			continue
		}
		prose := code.ReplaceAllStringFunc(read(t, page), func(s string) string { return strings.Repeat("\n", strings.Count(s, "\n")) })
		n := 0
		for line := range strings.Lines(prose) {
			n++
			if m := notUsed.FindString(line); m != "" {
				t.Errorf("%s:%d: %q: docs/glossary.md says what to write instead", page, n, m)
			}
		}
	}
}

// rows returns the cells of the first table of a document with the given head.
func rows(t *testing.T, page, head string) [][]string {
	t.Helper()
	_, table, found := strings.Cut(read(t, page), "| "+head+" |\n|")
	if !found {
		t.Fatalf("%s has no table with the head %q", page, head)
	}
	_, table, _ = strings.Cut(table, "\n") // the dashes below the head
	var list [][]string
	for line := range strings.Lines(table) {
		if !strings.HasPrefix(line, "|") {
			break
		}
		list = append(list, strings.Split(strings.Trim(strings.TrimSpace(line), "| "), " | "))
	}
	if len(list) == 0 {
		t.Fatalf("%s: the table with the head %q is empty", page, head)
	}
	return list
}

func TestEveryPromiseNamesItsTest(t *testing.T) {
	for _, row := range rows(t, "docs/promises.md", "Promise | Test") {
		if len(row) != 2 || !testName.MatchString(row[1]) {
			t.Errorf("docs/promises.md: a promise without a test: %s", strings.Join(row, " | "))
		}
	}
}

// The glossary is a table in alphabetical order, so that no term can be in it
// twice.
func TestGlossaryHasEachTermOnce(t *testing.T) {
	last := ""
	for _, row := range rows(t, "docs/glossary.md", "Term | Meaning | In the code") {
		term := strings.ToLower(row[0])
		if len(row) != 3 || row[1] == "" {
			t.Errorf("docs/glossary.md: %s has no meaning", row[0])
		}
		if term <= last {
			t.Errorf("docs/glossary.md: %q comes after %q", term, last)
		}
		last = term
	}
}

// imported returns the modules that our own packages import, including tests.
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

// required returns all modules that go.mod lists.
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
			t.Errorf("docs/dependencies.md explains %s, which go.mod does not list", module)
		}
	}
}
