// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"holdfast/test/golden"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// linked returns for each binary the linked packages of other modules, by
// module. Our own packages are not included, because imports_test.go states
// which binary may link them.
var linked = sync.OnceValues(func() (map[string]map[string][]string, error) {
	dir, err := root()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Standard,Module,Deps,Name", "./cmd/...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64", "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	module := map[string]string{} // module of each package outside the standard library
	deps := map[string][]string{} // dependencies of each binary
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath, Name string
			Standard         bool
			Module           *struct{ Path string }
			Deps             []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		switch {
		case p.Standard || p.Module == nil:
		case p.Module.Path != modulePath:
			module[p.ImportPath] = p.Module.Path
		case p.Name == "main":
			deps[filepath.Base(p.ImportPath)] = p.Deps
		}
	}
	all := map[string]map[string][]string{}
	for binary, list := range deps {
		all[binary] = map[string][]string{}
		for _, dep := range list {
			if m, ok := module[dep]; ok {
				all[binary][m] = append(all[binary][m], dep)
			}
		}
	}
	return all, nil
})

// render writes the packages of a binary: each module on a line, followed by
// its packages, indented and without the module's path. There are no versions,
// because go.mod has those; an upgrade that links no other packages changes no
// list.
func render(binary string, modules map[string][]string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# What %s links of other modules, on Linux: modules, and below each its packages.\n", binary)
	fmt.Fprintf(&b, "# go test ./test/arch -run TestLinkedPackagesAreThoseListed -update writes it.\n")
	names := make([]string, 0, len(modules))
	for name := range modules {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&b, "\n%s\n", name)
		slices.Sort(modules[name])
		for _, p := range modules[name] {
			rel := strings.TrimPrefix(strings.TrimPrefix(p, name), "/")
			if rel == "" {
				rel = "."
			}
			fmt.Fprintf(&b, "\t%s\n", rel)
		}
	}
	return b.String()
}

// TestLinkedPackagesAreThoseListed makes every newly linked or no longer linked
// package a part of the diff under review.
func TestLinkedPackagesAreThoseListed(t *testing.T) {
	all, err := linked()
	if err != nil {
		t.Fatal("go list: ", err)
	}
	if len(all) < 4 {
		t.Fatalf("only %d binaries found", len(all))
	}
	for binary, modules := range all {
		path := filepath.Join("testdata", "links", binary+".txt")
		got := render(binary, modules)
		if *golden.Update {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Errorf("%s: run this test with -update, and review the list", err)
			continue
		}
		if got == string(want) {
			continue
		}
		before, after := lines(string(want)), lines(got)
		for p := range after {
			if !before[p] {
				t.Errorf("%s links %s, which is not in its list", binary, p)
			}
		}
		for p := range before {
			if !after[p] {
				t.Errorf("%s no longer links %s, which is in its list", binary, p)
			}
		}
		t.Errorf("if %s is to link that, run this test with -update, and commit %s", binary, path)
	}
	names, err := filepath.Glob("testdata/links/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if _, ok := all[strings.TrimSuffix(filepath.Base(name), ".txt")]; !ok {
			t.Errorf("%s does not belong to any binary", name)
		}
	}
}

// lines reads a list back: packages with the paths of their modules.
func lines(list string) map[string]bool {
	set := map[string]bool{}
	module := ""
	for line := range strings.Lines(list) {
		line = strings.TrimRight(line, "\n")
		switch name, below := strings.CutPrefix(line, "\t"); {
		case line == "" || strings.HasPrefix(line, "#"):
		case below:
			set[strings.TrimSuffix(module+"/"+name, "/.")] = true
		default:
			module = line
		}
	}
	return set
}
