// SPDX-License-Identifier: Apache-2.0

package model

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// swarm is a world with a service of two tasks and what is seen of it.
func swarm(t *testing.T) (*World, Seen) {
	t.Helper()
	w := New(3, 1)
	step := Step{Op: Create, Service: "s0", To: &Service{Replicas: 2, Version: 1}}
	w.Played(step, true)
	if wrong := w.Learn(map[string]Service{"s0": *step.To}, make([]bool, 3)); len(wrong) > 0 {
		t.Fatal(wrong)
	}
	return w, Seen{
		Tasks: []Task{{"a", "s0", 1, 0}, {"b", "s0", 2, 1}},
		Boxes: []Box{{"a", "s0", 0, 1, "first"}, {"b", "s0", 1, 1, "second"}},
	}
}

func TestLiesAreFound(t *testing.T) {
	for name, c := range map[string]struct {
		lie  func(*Seen)
		want string
	}{
		"the truth":             {func(*Seen) {}, ""},
		"a task is missing":     {func(s *Seen) { s.Tasks = s.Tasks[:1] }, "1 tasks of s0 run, want 2"},
		"a task is doubled":     {func(s *Seen) { s.Tasks[1].Slot = 1 }, "two tasks of s0 have the place 1"},
		"a container is alone":  {func(s *Seen) { s.Boxes = append(s.Boxes, Box{"c", "s0", 2, 1, "third"}) }, "which is not to run"},
		"a container twice":     {func(s *Seen) { s.Boxes = append(s.Boxes, Box{"a", "s0", 2, 1, "third"}) }, "a container on node 0 and one on node 2"},
		"no container":          {func(s *Seen) { s.Boxes = s.Boxes[:1] }, "has no container on node 1"},
		"the wrong version":     {func(s *Seen) { s.Boxes[0].Version = 2 }, "has version 2, want 1"},
		"another life":          {func(s *Seen) { s.Boxes[0].Life = "later" }, "was first and is later"},
		"another node":          {func(s *Seen) { s.Boxes[0].Node = 2 }, "its container on node 2"},
		"a task has been moved": {func(s *Seen) { s.Tasks[0].ID, s.Boxes[0].Task = "c", "c" }, "nothing has moved it"},
	} {
		t.Run(name, func(t *testing.T) {
			w, before := swarm(t)
			after := Seen{slices.Clone(before.Tasks), slices.Clone(before.Boxes)}
			c.lie(&after)
			wrong := strings.Join(w.Judge(before, after, Touched{}), "\n")
			if !strings.Contains(wrong, c.want) || (c.want == "") != (wrong == "") {
				t.Errorf("found %q, want %q", wrong, c.want)
			}
		})
	}
}

func TestRequestWithoutAnAnswerLeavesTwoPossibilities(t *testing.T) {
	for name, c := range map[string]struct {
		found map[string]Service
		ok    bool
	}{
		"it took effect":   {map[string]Service{"s0": {Replicas: 3, Version: 1}}, true},
		"it did not":       {map[string]Service{"s0": {Replicas: 2, Version: 1}}, true},
		"something else":   {map[string]Service{"s0": {Replicas: 4, Version: 1}}, false},
		"it is gone":       {nil, false},
		"there is another": {map[string]Service{"s0": {Replicas: 2, Version: 1}, "s9": {}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w, _ := swarm(t)
			w.Played(Step{Op: Scale, Service: "s0", To: &Service{Replicas: 3, Version: 1}}, false)
			if wrong := w.Learn(c.found, make([]bool, 3)); (len(wrong) == 0) != c.ok {
				t.Errorf("found %v", wrong)
			}
		})
	}
}

func TestSeedGivesTheSameSteps(t *testing.T) {
	play := func() (text string) {
		w, r := New(5, 3), rand.New(rand.NewPCG(1, 2))
		for range 50 {
			s := w.Next(r)
			text += s.String() + "\n"
			w.Played(s, true)
		}
		return text
	}
	first := play()
	if second := play(); first != second {
		t.Errorf("%s\nand\n%s", first, second)
	}
	for _, want := range []string{Create, Scale, Update, Rollback, Remove, Force, Drain, Gone, Quorum, Takeover} {
		if !strings.Contains(first, want) {
			t.Errorf("50 steps have no %s:\n%s", want, first)
		}
	}
}
