// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// file is a parsed source file of the module.
type file struct {
	name string // path inside the repository
	pkg  *pkg
	test bool
	set  *token.FileSet
	ast  *ast.File
}

func (f *file) at(p token.Pos) string {
	return f.name + ":" + strconv.Itoa(f.set.Position(p).Line)
}

// imports reports whether the file imports the package, and under which name.
func (f *file) imports(path string) (name string, ok bool) {
	for _, i := range f.ast.Imports {
		if i.Path.Value != strconv.Quote(path) {
			continue
		}
		if i.Name != nil {
			return i.Name.Name, true
		}
		return path[strings.LastIndexByte(path, '/')+1:], true
	}
	return "", false
}

// uses calls fn for each selector NAME.Something of an imported package.
func (f *file) uses(path string, fn func(pos token.Pos, selected string)) {
	name, ok := f.imports(path)
	if !ok {
		return
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok && x.Name == name {
				fn(s.Pos(), s.Sel.Name)
			}
		}
		return true
	})
}

func sources(t *testing.T) []*file {
	t.Helper()
	dir := rootDir(t)
	var files []*file
	for _, p := range ownPackages(t) {
		for i, name := range slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles) {
			f := &file{pkg: p, test: i >= len(p.GoFiles), set: token.NewFileSet()}
			path := filepath.Join(p.Dir, name)
			var err error
			if f.ast, err = parser.ParseFile(f.set, path, nil, parser.ParseComments); err != nil {
				t.Fatal(err)
			}
			if f.name, err = filepath.Rel(dir, path); err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
	}
	return files
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	documented := map[string]bool{}
	for _, f := range sources(t) {
		if doc := f.ast.Doc.Text(); len(strings.Fields(doc)) >= 5 {
			documented[f.pkg.rel()] = true
		}
	}
	for _, p := range ownPackages(t) {
		if !documented[p.rel()] {
			t.Errorf("%s has no package comment that says what it owns", p.rel())
		}
	}
}

func TestPureRoomsTouchNothing(t *testing.T) {
	for _, f := range sources(t) {
		r, _ := roomOf(f.pkg.rel())
		if !r.pure || f.test {
			continue
		}
		for _, banned := range []string{"os", "os/exec", "net", "net/http", "context", "syscall", "math/rand", "math/rand/v2", "crypto/rand"} {
			if _, ok := f.imports(banned); ok {
				t.Errorf("%s imports %s, but %s is pure: take it as an argument", f.name, banned, r.path)
			}
		}
		f.uses("time", func(pos token.Pos, name string) {
			switch name {
			case "Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker":
				t.Errorf("%s: time.%s, but %s is pure: take the time as an argument", f.at(pos), name, r.path)
			}
		})
	}
}

func TestNothingSleepsToWait(t *testing.T) {
	for _, f := range sources(t) {
		f.uses("time", func(pos token.Pos, name string) {
			if name == "Sleep" {
				t.Errorf("%s: time.Sleep: wait for the event itself", f.at(pos))
			}
		})
	}
}

// TestThreadsAreLockedInOnePlace: only package osthread locks threads. It makes
// sure that a goroutine that changes its thread is not on the main thread.
func TestThreadsAreLockedInOnePlace(t *testing.T) {
	for _, f := range sources(t) {
		if room := f.pkg.rel(); f.test || room == "internal/osthread" || within(room, "test") {
			continue
		}
		f.uses("runtime", func(pos token.Pos, name string) {
			if name == "LockOSThread" {
				t.Errorf("%s: runtime.LockOSThread: use internal/osthread", f.at(pos))
			}
		})
	}
}

func TestNoTestIsSkippedAndNothingIsLeftToDo(t *testing.T) {
	for _, f := range sources(t) {
		if f.test {
			ast.Inspect(f.ast, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				if s, ok := call.Fun.(*ast.SelectorExpr); ok {
					switch s.Sel.Name {
					case "Skip", "Skipf", "SkipNow":
						t.Errorf("%s: %s: a test proves its promise or fails", f.at(call.Pos()), s.Sel.Name)
					}
				}
				return true
			})
		}
		for _, group := range f.ast.Comments {
			for _, c := range group.List {
				for _, mark := range []string{"TO" + "DO", "FIX" + "ME", "XX" + "X"} {
					if slices.Contains(words(c.Text), mark) {
						t.Errorf("%s: %s: do it, or document what is missing", f.at(c.Pos()), mark)
					}
				}
			}
		}
	}
}

func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9')
	})
}

func TestMainsOnlyWire(t *testing.T) {
	for _, f := range sources(t) {
		if !strings.HasPrefix(f.name, "cmd/") || filepath.Base(f.name) != "main.go" {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(f.pkg.Dir, "main.go"))
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(raw), "\n"); n > 100 {
			t.Errorf("%s has %d lines: a main wires, and 100 lines are enough for that", f.name, n)
		}
	}
}
