// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"go/ast"
	"go/token"
	"slices"
	"testing"
)

// gappy are the functions that list network state of the kernel, and may miss
// entries if the state changes meanwhile. The value says what lists it completely.
var gappy = map[string]string{
	"LinkList": "dump.Interfaces", "AddrList": "dump.Addrs", "RouteList": "dump.Routes", "RouteListFiltered": "dump.Routes",
	"NeighList": "dump.Whole", "NeighListExecute": "dump.Whole", "NeighProxyList": "dump.Whole", "RuleList": "dump.Whole", "QdiscList": "dump.Whole",
	"ConntrackTableList": "dump.Whole", "ConntrackDeleteFilter": "dump.Repeat", "ConntrackDeleteFilters": "dump.Repeat",
	"XfrmStateList": "dump.Whole", "XfrmPolicyList": "dump.Whole", "BridgeVlanList": "dump.Whole",
	"ListTables": "dump.Ruleset", "ListTablesOfFamily": "dump.Ruleset", "ListChains": "dump.Ruleset", "ListChainsOfTableFamily": "dump.Ruleset",
	"GetSets": "dump.Ruleset", "GetSetElements": "dump.Ruleset", "GetRules": "dump.Ruleset",
}

// wholly are the functions within whose arguments they may be called.
var wholly = []string{"Whole", "Repeat", "Ruleset", "listRules", "listed"}

// Package net lists all interfaces for each of these functions, and ignores the
// mark of an interrupted listing.
var gappyNet = map[string]string{
	"Interfaces": "dump.Interfaces", "InterfaceByName": "netlink.LinkByName", "InterfaceByIndex": "netlink.LinkByIndex", "InterfaceAddrs": "dump.Prefixes",
}

// A listing of the kernel's network state with gaps looks like a complete one: an
// address seems free, a rule seems to be missing.
func TestKernelStateIsListedWithoutGaps(t *testing.T) {
	for _, f := range sources(t) {
		// "holdfast demo" shall not link the libraries. A subnet that it wrongly
		// takes for free is one that the daemon refuses.
		if f.pkg.rel() == "internal/network/dump" || f.pkg.rel() == "internal/cli/demo" {
			continue
		}
		f.uses("net", func(pos token.Pos, selected string) {
			if instead, ok := gappyNet[selected]; ok {
				t.Errorf("%s: net.%s may miss an interface while others change; use %s", f.at(pos), selected, instead)
			}
		})
		for _, c := range gapsIn(f.ast) {
			t.Errorf("%s: %s may miss entries while the kernel's state changes; use %s", f.at(c.Pos()), c.Sel.Name, gappy[c.Sel.Name])
		}
	}
}

// gapsIn returns the listings that are called outside of a complete listing.
func gapsIn(root ast.Node) (out []*ast.SelectorExpr) {
	ast.Inspect(root, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			if slices.Contains(wholly, called(n)) {
				return false
			}
		case *ast.SelectorExpr:
			if gappy[n.Sel.Name] != "" {
				out = append(out, n)
			}
		}
		return true
	})
	return out
}

// called returns the name of the function that is called, without its package.
func called(c *ast.CallExpr) string {
	switch f := c.Fun.(type) {
	case *ast.SelectorExpr:
		return f.Sel.Name
	case *ast.Ident:
		return f.Name
	}
	return ""
}
