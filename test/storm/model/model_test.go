// SPDX-License-Identifier: Apache-2.0

package model

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestSeedAlwaysGivesTheSamePlan(t *testing.T) {
	a, b := NewPlan(7, 2, 3, 2, 40, 20), NewPlan(7, 2, 3, 2, 40, 20)
	if !reflect.DeepEqual(a, b) {
		t.Error("two plans of one seed differ")
	}
	if c := NewPlan(7, 3, 3, 2, 40, 20); reflect.DeepEqual(a.Ops, c.Ops) {
		t.Error("two rounds are the same")
	}
}

func TestEveryKindIsPlayed(t *testing.T) {
	seen := map[Kind]bool{}
	for round := range 20 {
		p := NewPlan(1, round, 3, 2, 60, 40)
		for _, o := range p.Ops {
			seen[o.Kind] = true
		}
		for _, f := range p.Faults {
			seen[f.Kind] = true
		}
	}
	for _, k := range slices.Concat(OpKinds(), FaultKinds()) {
		if !seen[k] {
			t.Errorf("%s never comes", k)
		}
	}
}

// slotOf is a slot with a container.
func slotOf(t *testing.T, spec Spec) *Slot {
	t.Helper()
	s := NewSlot()
	if err := s.Do(Op{Kind: Create}, s.NewGen(spec), Answer{Result: OK}); err != nil {
		t.Fatal(err)
	}
	return s
}

type step struct {
	kind   Kind
	n      int
	answer Answer
	seen   *Observation // instead of an operation
}

func TestModelAllowsAndRefuses(t *testing.T) {
	ok := Answer{Result: OK}
	up := &Observation{Status: Running, Identity: "pid 1"}
	exited := func(code int) *Observation { return &Observation{Status: Exited, Exit: code} }
	for _, c := range []struct {
		name  string
		spec  Spec
		steps []step
		bad   string // part of the last step's error; empty where it is allowed
	}{
		{"a life", Spec{}, []step{{kind: Start, answer: ok}, {seen: up}, {kind: Stop, answer: ok}, {seen: exited(StopCode)}, {kind: Remove, answer: ok}, {seen: &Observation{}}}, ""},
		{"a stop that did nothing", Spec{}, []step{{kind: Start, answer: ok}, {kind: Stop, answer: ok}, {seen: up}}, "running"},
		{"killed before the time-out", Spec{}, []step{{kind: Start, answer: ok}, {kind: Stop, answer: ok}, {seen: exited(137)}}, "exit code 137"},
		{"killed after the time-out", Spec{}, []step{{kind: Start, answer: ok}, {kind: Stop, answer: Answer{Result: OK, Late: true}}, {seen: exited(137)}}, ""},
		{"a start that was not needed", Spec{}, []step{{kind: Start, answer: Answer{Result: Same}}}, "not modified"},
		{"an end that nobody asked for", Spec{}, []step{{kind: Start, answer: ok}, {seen: exited(0)}}, "exited"},
		{"a program that ends", Spec{Life: 5, Code: 3}, []step{{kind: Start, answer: ok}, {seen: exited(3)}}, ""},
		{"with a wrong code", Spec{Life: 5, Code: 3}, []step{{kind: Start, answer: ok}, {seen: exited(0)}}, "exit code 0"},
		{"another process in the same run", Spec{}, []step{{kind: Start, answer: ok}, {seen: up}, {seen: &Observation{Status: Running, Identity: "pid 2"}}}, "was pid 1 and is pid 2"},
		{"a lost container", Spec{}, []step{{kind: Start, answer: ok}, {seen: &Observation{}}}, `it is ""`},
		{"an unanswered start, done", Spec{}, []step{{kind: Start}, {seen: up}}, ""},
		{"an unanswered start, not done", Spec{}, []step{{kind: Start}, {seen: &Observation{Status: Created}}}, ""},
		{"an unanswered start, done later", Spec{}, []step{{kind: Start}, {seen: &Observation{Status: Created}}, {seen: up}}, ""},
		{"an unanswered start, and no container", Spec{}, []step{{kind: Start}, {seen: &Observation{}}}, `it is ""`},
		{"restarted by its policy", Spec{Policy: Always, Life: 5}, []step{{kind: Start, answer: ok}, {seen: &Observation{Status: Restarting}}, {seen: up}}, ""},
		{"restarted without a policy", Spec{Life: 5}, []step{{kind: Start, answer: ok}, {seen: exited(0)}, {seen: up}}, "running"},
		{"the name is taken", Spec{}, []step{{kind: Create, answer: Answer{Result: Conflict}}}, ""},
		{"two of one name", Spec{}, []step{{kind: Create, answer: ok}}, "done"},
		{"pause and what it refuses", Spec{}, []step{{kind: Start, answer: ok}, {kind: Pause, answer: ok}, {kind: Exec, answer: Answer{Result: Refused}}, {kind: Unpause, answer: ok}, {kind: Exec, answer: ok}}, ""},
		{"an exec in a frozen container", Spec{}, []step{{kind: Start, answer: ok}, {kind: Pause, answer: ok}, {kind: Exec, answer: ok}}, "exec"},
		{"a commit whose client is gone", Spec{}, []step{{kind: Start, answer: ok}, {kind: Commit}, {seen: &Observation{Status: Paused}}, {seen: up}}, ""},
		{"a stubborn program, stopped before it can be so", Spec{Stubborn: true}, []step{{kind: Start, answer: ok}, {kind: Stop, answer: ok}, {seen: exited(EarlyStopCode)}}, ""},
		{"a stubborn program that obeys", Spec{Stubborn: true}, []step{{kind: Start, answer: ok}, {kind: Stop, answer: ok}, {seen: exited(StopCode)}}, "exit code 7"},
		{"removed by its shim, and not yet by a daemon", Spec{Remove: true}, []step{{kind: Start, answer: ok}, {kind: Kill, answer: ok}, {kind: Stop, answer: Answer{Result: Missing, Unrecorded: true}}, {seen: exited(137)}}, ""},
		{"not found, and then found", Spec{Remove: true}, []step{{kind: Start, answer: ok}, {kind: Kill, answer: ok}, {kind: Stop, answer: Answer{Result: Missing}}, {seen: exited(137)}}, "exited"},
		{"a removal of a frozen container whose client is gone", Spec{}, []step{{kind: Start, answer: ok}, {kind: Pause, answer: ok}, {kind: Remove, n: 1}, {seen: &Observation{Status: Running}}, {seen: &Observation{}}}, ""},
		{"a refused removal of a frozen container", Spec{}, []step{{kind: Start, answer: ok}, {kind: Pause, answer: ok}, {kind: Remove, answer: Answer{Result: Refused}}, {seen: &Observation{Status: Running}}}, "running"},
		{"refused without a fault", Spec{}, []step{{kind: Start, answer: Answer{Result: Refused}}}, "refused"},
		{"refused by a fault", Spec{}, []step{{kind: Start, answer: Answer{Result: Refused, Disturbed: true}}, {seen: &Observation{Status: Created, Exit: 128}}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := slotOf(t, c.spec)
			var err error
			for i, st := range c.steps {
				if err != nil {
					t.Fatalf("step %d: %v", i-1, err)
				}
				if st.seen != nil {
					err = s.Observe(*st.seen)
				} else {
					gen := 0
					if st.kind == Create {
						gen = s.NewGen(c.spec)
					}
					err = s.Do(Op{Kind: st.kind, N: st.n}, gen, st.answer)
				}
			}
			if (err == nil) != (c.bad == "") || err != nil && !strings.Contains(err.Error(), c.bad) {
				t.Errorf("got %v, want %q", err, c.bad)
			}
		})
	}
}

// A removal whose call of the runtime was killed leaves the program running. The next
// daemon shows that until it has removed the container. Nothing else wakes the dead.
func TestRemovalThatCouldNotKillIsFinishedByTheNextDaemon(t *testing.T) {
	for _, killed := range []bool{false, true} {
		s := slotOf(t, Spec{})
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(s.Do(Op{Kind: Start}, 0, Answer{Result: OK}))
		if killed {
			s.SawDamage()
		}
		must(s.Do(Op{Kind: Remove, N: 1}, 0, Answer{Result: Refused, Disturbed: true}))
		must(s.Observe(Observation{Status: Dead}))
		if err := s.Observe(Observation{Status: Running}); err == nil {
			t.Error("it runs, and no daemon has begun")
		}
		s.SawDaemonBegin()
		if err := s.Observe(Observation{Status: Running}); (err == nil) != killed {
			t.Errorf("the runtime was killed %v: %v", killed, err)
		}
		if killed {
			must(s.Observe(Observation{}))
		}
	}
}

// A removal of which a full disk allowed no record is undone when the daemon dies. No
// other removal is.
func TestOnlyAFullDiskUndoesARemoval(t *testing.T) {
	for _, full := range []bool{false, true} {
		s := slotOf(t, Spec{})
		if full {
			s.SawFullDisk()
		}
		if err := s.Do(Op{Kind: Remove}, 0, Answer{}); err != nil {
			t.Fatal(err)
		}
		if err := s.Observe(Observation{Status: Removing}); err != nil {
			t.Fatal(err)
		}
		s.SawDaemonBegin()
		if err := s.Observe(Observation{Status: Created}); (err == nil) != full {
			t.Errorf("full disk %v: %v", full, err)
		}
	}
}

// What is not known stays bounded, however many answers are lost.
func TestLostAnswersDoNotMakeTheSetGrowWithoutBound(t *testing.T) {
	d := NewDice(3)
	s := slotOf(t, Spec{Policy: OnFailure, Life: 10, Code: 3})
	for range 60 {
		if err := s.Do(newOp(d, 0, 1), 0, Answer{}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(s.Possible()); n > 5000 {
		t.Errorf("%d possible states", n)
	}
}

func TestShrinkFindsTheShortestThatFails(t *testing.T) {
	var list []int
	for i := range 100 {
		list = append(list, i)
	}
	got := Shrink(list, func(l []int) bool { return slices.Contains(l, 13) && slices.Contains(l, 77) })
	if !slices.Equal(got, []int{13, 77}) {
		t.Errorf("got %v", got)
	}
}

func TestRunsHaveTheStartsThatMayStillCome(t *testing.T) {
	s := slotOf(t, Spec{})
	do := func(k Kind, r Result) {
		t.Helper()
		if err := s.Do(Op{Kind: k}, 0, Answer{Result: r, Late: true}); err != nil {
			t.Fatal(err)
		}
	}
	do(Start, OK)
	do(Stop, OK)
	if low, high, known := s.Runs(0); low != 1 || high != 1 || !known {
		t.Errorf("after one start: %d to %d, %v", low, high, known)
	}
	do(Start, Lost)
	if err := s.Observe(Observation{Status: Exited, Exit: StopCode}); err != nil {
		t.Fatal(err)
	}
	if low, high, known := s.Runs(0); low != 1 || high != 2 || !known {
		t.Errorf("while another may come: %d to %d, %v", low, high, known)
	}
}

func TestOnlyATerminalThatLostDaemonAndShimIsHungUp(t *testing.T) {
	for _, tt := range []struct {
		spec     Spec
		orphaned bool
		code     int
		want     bool
	}{
		{Spec{TTY: true}, true, EarlyStopCode, true},
		{Spec{TTY: true, JoinsPid: true}, true, HangUpCodePid, true},
		{Spec{TTY: true}, true, 0, false},
		{Spec{TTY: true}, false, EarlyStopCode, false},
		{Spec{}, true, EarlyStopCode, false},
	} {
		s := slotOf(t, tt.spec)
		if err := s.Do(Op{Kind: Start}, 0, Answer{Result: OK}); err != nil {
			t.Fatal(err)
		}
		if tt.orphaned {
			s.SawOrphaning()
		}
		if err := s.Observe(Observation{Status: Exited, Exit: tt.code}); (err == nil) != tt.want {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}
