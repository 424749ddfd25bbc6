// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

func TestOrphansAreToldByTheirNamespaces(t *testing.T) {
	for _, c := range []struct {
		name, status string
		zombie       bool
		depth, inner int
	}{
		{"a child of ours", "Name:\tx\nState:\tZ (zombie)\nNSpid:\t77\n", true, 1, 77},
		{"of a container, its first", "State:\tZ (zombie)\nNSpid:\t77\t1\n", true, 2, 1},
		{"of a container, another", "State:\tZ (zombie)\nNSpid:\t77\t9\n", true, 2, 9},
		{"of a container in a container", "State:\tS (sleeping)\nNSpid:\t77\t9\t4\n", false, 3, 4},
		{"nothing", "", false, 0, 0},
	} {
		zombie, depth, inner := parseStatus([]byte(c.status))
		if zombie != c.zombie || depth != c.depth || inner != c.inner {
			t.Errorf("%s: %v %d %d", c.name, zombie, depth, inner)
		}
	}
}
