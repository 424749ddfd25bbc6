// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"cmp"
	"fmt"
	"holdfast/test/golden"
	"testing"
	"text/tabwriter"
)

// TestHealthTable compares the shown health of every state with its golden file.
func TestHealthTable(t *testing.T) {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "state\tran before\tseen last\tshown")
	for s := range numStates {
		for _, ran := range []bool{false, true} {
			for _, seen := range []string{HealthNone, HealthStarting, HealthHealthy, HealthUnhealthy} {
				if (seen == HealthNone) == ran {
					continue // the status is starting from the beginning of the first run
				}
				before := map[bool]string{true: "yes", false: "no"}[ran]
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", s, before, cmp.Or(seen, "-"), cmp.Or(Health(s, ran, true, seen), "none"))
				if got := Health(s, ran, false, seen); got != HealthNone {
					t.Errorf("%s without a check: %s", s, got)
				}
			}
		}
	}
	w.Flush()
	golden.Compare(t, "testdata/health.golden", trimRight(b.Bytes()))
}
