// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"go/ast"
	"maps"
	"slices"
	"strings"
	"testing"
)

// ordered are the rooms in which the order of locks follows from the calls. A lock
// is taken only by methods of the type that has it, and no two types with locks
// refer to each other. So a goroutine that has a lock only waits for locks of
// types further down.
var ordered = []string{"internal/network", "internal/image"}

func inOrdered(f *file) bool {
	return !f.test && slices.ContainsFunc(ordered, func(room string) bool { return within(f.pkg.rel(), room) })
}

// structs are the struct types of a file's package, by "package.Type". A type that
// is declared as another one has its fields.
type structs map[string]*ast.StructType

func structsOf(files []*file) structs {
	all := structs{}
	alias := map[string]string{}
	for _, f := range files {
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if s, ok := n.(*ast.TypeSpec); ok {
				name := f.pkg.rel() + "." + s.Name.Name
				switch t := s.Type.(type) {
				case *ast.StructType:
					all[name] = t
				case *ast.Ident:
					alias[name] = f.pkg.rel() + "." + t.Name
				}
			}
			return true
		})
	}
	for name, of := range alias {
		if s := all[of]; s != nil {
			all[name] = s
		}
	}
	return all
}

// locks are the names of the fields of a struct that are mutexes.
func locks(s *ast.StructType) []string {
	var names []string
	for _, field := range s.Fields.List {
		if t, ok := field.Type.(*ast.SelectorExpr); ok && (t.Sel.Name == "Mutex" || t.Sel.Name == "RWMutex") {
			if x, ok := t.X.(*ast.Ident); ok && x.Name == "sync" {
				for _, name := range field.Names {
					names = append(names, name.Name)
				}
			}
		}
	}
	return names
}

var lockMethods = []string{"Lock", "Unlock", "RLock", "RUnlock", "TryLock", "TryRLock"}

func TestLocksAreTakenByTheirOwnersOnly(t *testing.T) {
	var files []*file
	for _, f := range sources(t) {
		if inOrdered(f) {
			files = append(files, f)
		}
	}
	types := structsOf(files)
	anyLock := map[string]bool{} // of fields, by package
	for name, s := range types {
		dir, _, _ := strings.Cut(name, ".")
		for _, lock := range locks(s) {
			anyLock[dir+"."+lock] = true
		}
	}
	if len(anyLock) == 0 {
		t.Fatal("no locks found")
	}
	for _, f := range files {
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			self, own := "", []string(nil)
			if r := receiver(fn); r != "" && len(fn.Recv.List[0].Names) > 0 {
				self = fn.Recv.List[0].Names[0].Name
				if s := types[f.pkg.rel()+"."+r]; s != nil {
					own = locks(s)
				}
			}
			ast.Inspect(fn, func(n ast.Node) bool {
				method, ok := n.(*ast.SelectorExpr)
				if !ok || !slices.Contains(lockMethods, method.Sel.Name) {
					return true
				}
				lock, ok := method.X.(*ast.SelectorExpr)
				if !ok || !anyLock[f.pkg.rel()+"."+lock.Sel.Name] {
					return true
				}
				if x, ok := lock.X.(*ast.Ident); !ok || x.Name != self || !slices.Contains(own, lock.Sel.Name) {
					t.Errorf("%s: %s takes the lock %s of another type: make it a method of that type", f.at(n.Pos()), fn.Name.Name, lock.Sel.Name)
				}
				return true
			})
		}
	}
}

func TestTypesWithLocksDoNotReferToEachOther(t *testing.T) {
	var files []*file
	for _, f := range sources(t) {
		if inOrdered(f) {
			files = append(files, f)
		}
	}
	types := structsOf(files)
	below := map[string][]string{}
	for name, s := range types {
		dir, _, _ := strings.Cut(name, ".")
		for _, field := range s.Fields.List {
			ast.Inspect(field.Type, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncType: // a callback is no reference
					return false
				case *ast.SelectorExpr: // of another package, which imports run down to
					return false
				case *ast.Ident:
					if of := dir + "." + n.Name; types[of] != nil && of != name {
						below[name] = append(below[name], of)
					}
				}
				return true
			})
		}
	}
	if len(below) == 0 {
		t.Fatal("no types found that refer to others")
	}
	const ( // of a type on the way down
		open = 1
		done = 2
	)
	state := map[string]int{}
	var path []string
	var visit func(string)
	visit = func(name string) {
		path = append(path, name)
		defer func() { path = path[:len(path)-1] }()
		state[name] = open
		for _, next := range below[name] {
			switch state[next] {
			case 0:
				visit(next)
			case open:
				circle := path[slices.Index(path, next):]
				withLock := 0
				for _, name := range circle {
					withLock += len(locks(types[name]))
				}
				if withLock > 1 {
					t.Errorf("types with locks refer to each other: %s → %s", strings.Join(circle, " → "), next)
				}
			}
		}
		state[name] = done
	}
	for _, name := range slices.Sorted(maps.Keys(types)) {
		if state[name] == 0 {
			visit(name)
		}
	}
}
