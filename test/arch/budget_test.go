// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/token"
	"holdfast/test/golden"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// budgets limit how much code a reader has to understand at once. Tests are
// exempt.
var budgets = map[string]int{
	"methods":    40,  // of a type
	"lines":      80,  // of a function, with its first and last line
	"file":       600, // lines
	"interface":  10,  // methods of an interface
	"complexity": 20,  // branches of a function, plus one
	"imports":    14,  // imports of our own packages, by one package
}

// exceptionsFile lists what exceeds a budget: the kind of budget, the name, the
// figure, and the reason. The figures may only become smaller.
const exceptionsFile = "testdata/budget.txt"

type exception struct {
	most   int
	reason string
}

// TestBudgets: code that exceeds a budget is in the list of exceptions with a
// reason, and has not grown.
func TestBudgets(t *testing.T) {
	over := measure(t)
	listed := readExceptions(t)
	if *golden.Update {
		writeExceptions(t, over, listed)
		return
	}
	for _, what := range slices.Sorted(maps.Keys(over)) {
		kind, _, _ := strings.Cut(what, " ")
		e, ok := listed[what]
		switch {
		case !ok:
			t.Errorf("%s: %d, the budget is %d: split it, or give a reason in %s", what, over[what], budgets[kind], exceptionsFile)
		case over[what] > e.most:
			t.Errorf("%s: %d, it was %d: exceptions don't grow", what, over[what], e.most)
		case over[what] < e.most:
			t.Errorf("%s: %d, less than the %d of the list: run with -update, so that it stays so", what, over[what], e.most)
		}
	}
	for what, e := range listed {
		if _, ok := over[what]; !ok {
			t.Errorf("%s is within its budget: take it out of %s", what, exceptionsFile)
		}
		if len(strings.Fields(e.reason)) < 3 {
			t.Errorf("%s has no reason in %s", what, exceptionsFile)
		}
	}
}

// measure returns everything that exceeds its budget.
func measure(t *testing.T) map[string]int {
	over := map[string]int{}
	methods := map[string]int{}
	check := func(kind, of string, n int) {
		if n > budgets[kind] {
			over[kind+" "+of] = n
		}
	}
	for _, f := range sources(t) {
		if f.test || strings.HasPrefix(f.name, "test/") {
			continue
		}
		lines := f.set.Position(f.ast.End()).Line
		if c := f.ast.Comments; len(c) > 0 && strings.HasPrefix(c[0].List[0].Text, "// SPDX-") {
			lines -= 2 // the licence and the empty line after it
		}
		check("file", f.name, lines)
		dir := filepath.Dir(f.name)
		for _, d := range f.ast.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				name := dir + "." + d.Name.Name
				if r := receiver(d); r != "" {
					methods[dir+"."+r]++
					name = dir + "." + r + "." + d.Name.Name
				}
				check("lines", name, f.set.Position(d.End()).Line-f.set.Position(d.Pos()).Line+1)
				check("complexity", name, complexity(d))
			case *ast.GenDecl:
				for _, s := range d.Specs {
					if s, ok := s.(*ast.TypeSpec); ok {
						if i, ok := s.Type.(*ast.InterfaceType); ok {
							check("interface", dir+"."+s.Name.Name, i.Methods.NumFields())
						}
					}
				}
			}
		}
	}
	for of, n := range methods {
		check("methods", of, n)
	}
	for _, p := range ownPackages(t) {
		n := 0
		for _, i := range p.Imports {
			if own(i) {
				n++
			}
		}
		check("imports", p.rel(), n)
	}
	return over
}

func receiver(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return ""
	}
	t := d.Recv.List[0].Type
	if s, ok := t.(*ast.StarExpr); ok {
		t = s.X
	}
	if i, ok := t.(*ast.IndexExpr); ok {
		t = i.X
	}
	if i, ok := t.(*ast.Ident); ok {
		return i.Name
	}
	return ""
}

// complexity is the number of branches of a function, plus one. Nested
// functions are included.
func complexity(d *ast.FuncDecl) int {
	n := 1
	ast.Inspect(d, func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.IfStmt, *ast.ForStmt, *ast.RangeStmt:
			n++
		case *ast.CaseClause:
			if node.List != nil {
				n++
			}
		case *ast.CommClause:
			if node.Comm != nil {
				n++
			}
		case *ast.BinaryExpr:
			if node.Op == token.LAND || node.Op == token.LOR {
				n++
			}
		}
		return true
	})
	return n
}

// readExceptions reads lines of the form: kind name most: reason.
func readExceptions(t *testing.T) map[string]exception {
	t.Helper()
	text, err := os.ReadFile(exceptionsFile)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	list := map[string]exception{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		head, reason, _ := strings.Cut(line, ":")
		f := strings.Fields(head)
		if len(f) != 3 {
			t.Fatalf("%s: %q is not: kind name most: reason", exceptionsFile, line)
		}
		most, err := strconv.Atoi(f[2])
		if err != nil {
			t.Fatalf("%s: %q: %v", exceptionsFile, line, err)
		}
		list[f[0]+" "+f[1]] = exception{most, strings.TrimSpace(reason)}
	}
	return list
}

// writeExceptions writes the current figures, but none that is larger than
// before.
func writeExceptions(t *testing.T, over map[string]int, listed map[string]exception) {
	t.Helper()
	var b bytes.Buffer
	b.WriteString("# What is over a budget of budget_test.go, how much it may be, and why. No figure may grow.\n")
	for _, what := range slices.Sorted(maps.Keys(over)) {
		e := listed[what]
		if e.most == 0 || over[what] < e.most {
			e.most = over[what]
		}
		fmt.Fprintf(&b, "%s %d: %s\n", what, e.most, e.reason)
	}
	if err := os.WriteFile(exceptionsFile, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
