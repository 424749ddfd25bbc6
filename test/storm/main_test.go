// SPDX-License-Identifier: Apache-2.0

package storm

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/test/kit"
	"holdfast/test/storm/model"
)

func TestMain(m *testing.M) {
	kit.ReapOrphans()
	kit.Main(m)
}

var (
	stormTime   = flag.Duration("storm.time", 20*time.Second, "how long TestStorm takes; it begins no round that would take longer, except the first")
	stormFaults = flag.Int("storm.faults", 0, "how many faults TestStorm plays, instead of a time")
	stormSeed   = flag.Uint64("storm.seed", 0, "the seed; 0 takes a new one")
	stormRound  = flag.Int("storm.round", -1, "play this round alone")
	stormBeside = flag.Int("storm.beside", 1, "with how many daemons it plays at once, each by a process of its own with the next seed")
	stormOps    = flag.Int("storm.ops", 200, "most operations of a client in a round")
	stormPer    = flag.Int("storm.per", 12, "faults in a round")
	stormKinds  = flag.String("storm.kinds", "", "the kinds of faults, with commas between; empty is all")
	stormPlan   = flag.String("storm.plan", "", "play the plan in this file instead of a seed's")
	stormShrink = flag.Bool("shrink", false, "shrink a plan that fails to the shortest that still fails")
	stormKeep   = flag.Bool("storm.keep", false, "go on after a violation")
	stormAll    = flag.Bool("storm.all", false, "report all rounds, not only those that fail")
	stormOut    = flag.String("storm.out", "", "write plans that fail, with their histories and what was on the host, into this folder")
)

const (
	image   = "storm:base"
	clients = 3
	slots   = 3
	// dataSize is that of the file system of the data root, so that it can be
	// filled.
	dataSize = "size=160m,nr_inodes=12000"
)

// house starts the daemon that a storm plays with.
func house(t testing.TB) *kit.Daemon {
	t.Helper()
	d := kit.New(t, kit.Options{LiveRestore: true, Config: map[string]any{"debug": true}})
	if err := os.MkdirAll(d.DataRoot, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("storm", d.DataRoot, "tmpfs", 0, dataSize); err != nil {
		t.Fatal(err)
	}
	d.Start()
	d.Load(image, kit.ProgramImage(t, "./player"))
	return d
}

// TestStorm plays rounds of a new seed, which it prints.
func TestStorm(t *testing.T) {
	began := time.Now()
	seed := *stormSeed
	if seed == 0 {
		seed = uint64(began.UnixNano()) % 1e9
	}
	if *stormBeside > 1 {
		playBeside(t, seed)
		return
	}
	fmt.Printf("storm: %s plays this again\n", again(seed))
	registry := kit.StartRegistry(t, nil)
	registry.Push("storm:base", kit.ProgramImage(t, "./player"))
	d := house(t)
	neighbour := newOther(t)
	total := newTally()
	var longest time.Duration
	told := toldToEnd()
	for round := max(0, *stormRound); ; round++ {
		plan := planOf(t, seed, round)
		r := play(t, d, registry, neighbour, plan)
		total.add(r.tally)
		longest = max(longest, r.took)
		fmt.Printf("storm: round %d: %d operations, %d faults, %d without an answer, %.1f s, of which %.1f s to judge\n", round, r.tally.sum(r.tally.ops), r.tally.sum(r.tally.faults), r.tally.lost, r.took.Seconds(), (r.took - r.playing).Seconds())
		if len(r.violations) > 0 || *stormAll {
			report(t, plan, r)
		}
		if len(r.violations) > 0 {
			if *stormShrink {
				shrink(t, registry, plan, r)
			}
			t.Errorf("%s\nPlay it again: %s ROUND=%d", strings.Join(r.violations, "\n"), again(seed), round)
			if !*stormKeep {
				return
			}
		}
		select {
		case <-told:
			return
		default:
		}
		if *stormRound >= 0 || *stormPlan != "" {
			break
		}
		if *stormFaults > 0 {
			if total.sum(total.faults) >= *stormFaults {
				break
			}
		} else if time.Since(began)+longest > *stormTime {
			break
		}
	}
	fmt.Printf("storm: SEED=%d: %s\n%s", seed, time.Since(began).Round(time.Second), total)
}

// again is the command that plays a seed again.
func again(seed uint64) string {
	command := fmt.Sprintf("make storm SEED=%d PER=%d", seed, *stormPer)
	if *stormKinds != "" {
		command += " KINDS=" + *stormKinds
	}
	return command
}

func planOf(t *testing.T, seed uint64, round int) model.Plan {
	t.Helper()
	if *stormPlan != "" {
		b, err := os.ReadFile(*stormPlan)
		if err != nil {
			t.Fatal(err)
		}
		var p model.Plan
		if err := json.Unmarshal(b, &p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := model.NewPlan(seed, round, clients, slots, *stormOps, *stormPer)
	if *stormKinds != "" {
		p.Faults = slices.DeleteFunc(p.Faults, func(f model.Fault) bool {
			return !slices.Contains(strings.Split(*stormKinds, ","), string(f.Kind))
		})
	}
	return p
}

// report prints what happened before a violation, and writes the plan.
func report(t *testing.T, plan model.Plan, r result) {
	t.Helper()
	from := max(0, len(r.history)-80)
	fmt.Printf("storm: history\n%s\n", strings.Join(r.history[from:], "\n"))
	for _, v := range r.violations {
		fmt.Printf("storm: VIOLATION: %s\n", v)
	}
	dir := *stormOut
	if dir == "" {
		return
	}
	name := fmt.Sprintf("%s/%d-%d", dir, plan.Seed, plan.Round)
	b, err := json.MarshalIndent(plan, "", " ")
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = os.WriteFile(name+".json", b, 0o600)
	}
	if err == nil {
		err = os.WriteFile(name+".history", []byte(strings.Join(append(r.history, r.violations...), "\n")+"\n"), 0o600)
	}
	if err == nil {
		err = os.WriteFile(name+".log", []byte(r.log), 0o600)
	}
	if err == nil {
		err = os.WriteFile(name+".host", []byte(r.host), 0o600)
	}
	if err != nil {
		t.Error(err)
	}
}

// tally counts what was played.
type tally struct {
	ops, faults map[model.Kind]int
	lost        int
}

func newTally() tally { return tally{ops: map[model.Kind]int{}, faults: map[model.Kind]int{}} }

func (t *tally) add(o tally) {
	for k, n := range o.ops {
		t.ops[k] += n
	}
	for k, n := range o.faults {
		t.faults[k] += n
	}
	t.lost += o.lost
}

func (t tally) sum(of map[model.Kind]int) (n int) {
	for _, c := range of {
		n += c
	}
	return n
}

func (t tally) String() string {
	var b strings.Builder
	for _, part := range []struct {
		name string
		of   map[model.Kind]int
	}{{"operations", t.ops}, {"faults", t.faults}} {
		fmt.Fprintf(&b, "storm: %d %s:", t.sum(part.of), part.name)
		for _, k := range slices.Sorted(maps.Keys(part.of)) {
			fmt.Fprintf(&b, " %s %d", k, part.of[k])
		}
		fmt.Fprintln(&b)
	}
	return b.String()
}
