// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"go/ast"
	"strings"
	"testing"
)

// TestOneFunctionChangesAContainersPhase: only one function assigns a phase, so
// every change passes through the lifecycle's tables.
func TestOneFunctionChangesAContainersPhase(t *testing.T) {
	found := 0
	for _, f := range sources(t) {
		if f.test || !strings.HasPrefix(f.name, "internal/engine/") {
			continue
		}
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			ast.Inspect(fn, func(n ast.Node) bool {
				assign, ok := n.(*ast.AssignStmt)
				if !ok {
					return true
				}
				for _, to := range assign.Lhs {
					for {
						s, ok := to.(*ast.SelectorExpr)
						if !ok {
							break
						}
						if s.Sel.Name == "phase" {
							found++
							if fn.Name.Name != "enter" {
								t.Errorf("%s: %s assigns a phase, which only enter may do", f.at(s.Pos()), fn.Name.Name)
							}
						}
						to = s.X
					}
				}
				return true
			})
		}
	}
	if found != 1 {
		t.Errorf("phases are assigned in %d places, want 1", found)
	}
}
