// SPDX-License-Identifier: Apache-2.0

package storm

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"holdfast/test/kit"
	"holdfast/test/storm/model"
)

// tries is how often a shorter plan is played before it counts as one that does
// not fail: what goes wrong depends on the moment too.
const tries = 3

// shrink looks for the shortest plan that still fails in the same way, by leaving
// out ever smaller parts (delta debugging), and prints it.
func shrink(t *testing.T, registry *kit.Registry, plan model.Plan, r result) {
	kind, _, _ := strings.Cut(r.violations[0], ":")
	plan.Rest = 0
	left := r.played
	plan.Ops = slices.DeleteFunc(slices.Clone(plan.Ops), func(o model.Op) bool { // what was not played
		left[o.Client]--
		return left[o.Client] < 0
	})
	n := 0
	fails := func(p model.Plan) bool {
		for range tries {
			n++
			if failsOnce(t, registry, p, kind, n) {
				return true
			}
		}
		return false
	}
	plan.Faults = model.Shrink(plan.Faults, func(f []model.Fault) bool {
		p := plan
		p.Faults = f
		return fails(p)
	})
	plan.Ops = model.Shrink(plan.Ops, func(o []model.Op) bool {
		p := plan
		p.Ops = o
		return fails(p)
	})
	fmt.Printf("storm: the shortest that fails with %q, after %d rounds:\n", kind, n)
	for _, o := range plan.Ops {
		fmt.Println("  ", o)
	}
	for _, f := range plan.Faults {
		fmt.Println("  ", f)
	}
	b, err := json.MarshalIndent(plan, "", " ")
	if err != nil {
		t.Error(err)
		return
	}
	if *stormOut == "" {
		fmt.Printf("%s\n", b)
	} else if err := os.WriteFile(fmt.Sprintf("%s/%d-%d.short.json", *stormOut, plan.Seed, plan.Round), b, 0o600); err != nil {
		t.Error(err)
	}
}

// failsOnce plays a plan on a new daemon.
func failsOnce(t *testing.T, registry *kit.Registry, p model.Plan, kind string, n int) (failed bool) {
	t.Run(fmt.Sprintf("shrink-%d", n), func(t *testing.T) {
		r := play(t, house(t), registry, newOther(t), p)
		for _, v := range r.violations {
			failed = failed || strings.HasPrefix(v, kind+":")
		}
		fmt.Printf("storm: %d operations, %d faults: %v\n", len(p.Ops), len(p.Faults), r.violations)
	})
	return failed
}
