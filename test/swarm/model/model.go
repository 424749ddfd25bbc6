// SPDX-License-Identifier: Apache-2.0

// Package model says what a swarm may look like after operations and faults. It owns the
// services that are wanted and the steps that a seed stands for. It is pure: it knows no
// files, network, clock or source of chance of its own.
//
// A request without an answer leaves two possibilities, because it may have reached the
// log of the managers. What the managers say afterwards must be one of them.
package model

import (
	"fmt"
	"maps"
	"slices"
)

// Service is what is wanted of a service.
type Service struct {
	Global   bool
	Replicas int // 0 if it is global
	Version  int // of its program
}

// known is what is known of a service by its name.
type known struct {
	possible []*Service // nil means that there is none
	former   *Service   // what a rollback leads to, or nil if that is unknown
}

// World is what is wanted of a swarm.
type World struct {
	services map[string]*known
	drained  []bool // by node
	managers int
}

// names are those that services may have.
var names = []string{"s0", "s1", "s2", "s3"}

// maxReplicas and maxDrained bound what the machine of the test has to carry.
const (
	maxReplicas = 4
	maxDrained  = 2
)

// New returns the world of a swarm without services.
func New(nodes, managers int) *World {
	w := &World{services: map[string]*known{}, drained: make([]bool, nodes), managers: managers}
	for _, name := range names {
		w.services[name] = &known{possible: []*Service{nil}}
	}
	return w
}

// The operations and faults of a step.
const (
	Create   = "create"
	Scale    = "scale"
	Update   = "update"
	Rollback = "rollback"
	Remove   = "remove"
	Force    = "force"
	Drain    = "drain"
	Activate = "activate"

	None     = "none"
	Daemon   = "daemon"   // the daemon is killed
	Process  = "process"  // the swarm process is killed
	Both     = "both"     // both are killed
	Away     = "away"     // both are killed and stay away for seconds
	Restart  = "restart"  // the daemon is stopped and started
	Takeover = "takeover" // another daemon takes over
	Cut      = "cut"      // the network of the node is cut for seconds
	Gone     = "gone"     // the same, for so long that its tasks are replaced
	Quorum   = "quorum"   // two managers are away for seconds
)

// The orders of an update.
const (
	StartFirst = "start-first"
	StopFirst  = "stop-first"
)

// Moves reports whether the step moves tasks to other nodes. No update with StartFirst may go
// on then: if the new task of a place is moved before swarmkit has seen it run, swarmkit leaves
// the old one beside its replacement, until the next update of the service.
func (s Step) Moves() bool { return s.Service == "" || s.Fault == Gone }

// Step is an operation beside a fault.
type Step struct {
	Op      string
	Service string   // of the operation, or empty
	To      *Service // what the operation asks for, or nil
	Order   string   // of an update
	Node    int      // of Drain and Activate

	Fault string
	At    int // node of the fault; of Quorum, the manager that is left
}

func (s Step) String() string {
	what := s.Op + " " + s.Service
	if s.Service == "" {
		what = fmt.Sprintf("%s node %d", s.Op, s.Node)
	}
	if s.To != nil {
		what += fmt.Sprintf(" %+v %s", *s.To, s.Order)
	}
	if s.Fault != None {
		what += fmt.Sprintf(" beside %s at node %d", s.Fault, s.At)
	}
	return what
}

// Chance draws a number from 0 to n-1.
type Chance interface{ IntN(n int) int }

// Next draws a step.
func (w *World) Next(r Chance) Step {
	faults := []string{None, None, None, Daemon, Process, Both, Away, Restart, Takeover, Cut, Cut, Gone, Quorum}
	s := Step{Fault: faults[r.IntN(len(faults))], At: r.IntN(len(w.drained)), Order: []string{StartFirst, StopFirst}[r.IntN(2)]}
	switch s.Fault {
	case Quorum:
		s.At %= w.managers
	case Gone:
		s.Order = StopFirst
	}
	name, node, size := names[r.IntN(len(names))], r.IntN(len(w.drained)), 1+r.IntN(maxReplicas)
	draw := r.IntN(10)
	if draw == 9 {
		s.Node, s.Op = node, Drain
		drained := 0
		for _, d := range w.drained {
			if d {
				drained++
			}
		}
		switch {
		case w.drained[node]:
			s.Op = Activate
		case drained == maxDrained:
			s.Op, s.Node = Activate, slices.Index(w.drained, true)
		}
		return s
	}
	s.Service = name
	k := w.services[name]
	now := k.possible[0]
	if now == nil {
		s.Op, s.To = Create, &Service{Replicas: size, Version: 1}
		if size == maxReplicas {
			s.To = &Service{Global: true, Version: 1}
		}
		return s
	}
	next := *now
	switch {
	case draw < 3 && !now.Global:
		s.Op, next.Replicas = Scale, size
	case draw < 5 && k.former != nil:
		s.Op, next = Rollback, *k.former
	case draw == 6:
		s.Op = Remove
		return s
	case draw == 7:
		s.Op = Force
	default:
		s.Op, next.Version = Update, now.Version+1
	}
	s.To = &next
	return s
}

// Played records a step. answered is whether its operation succeeded; if not, it may have
// taken effect or not.
func (w *World) Played(s Step, answered bool) {
	if s.Service == "" {
		w.drained[s.Node] = s.Op == Drain // until Learn
		return
	}
	k := w.services[s.Service]
	before := k.possible[0]
	switch {
	case answered:
		k.possible = []*Service{s.To}
	default:
		k.possible = append(k.possible, s.To)
	}
	k.former = nil
	if answered && before != nil && s.Op != Rollback {
		k.former = before
	}
}

// Learn compares the services and nodes that the managers have with what is possible, and
// takes them for certain. It returns what is wrong.
func (w *World) Learn(found map[string]Service, drained []bool) (wrong []string) {
	for _, name := range names {
		k := w.services[name]
		var now *Service
		if s, ok := found[name]; ok {
			now = &s
		}
		if !slices.ContainsFunc(k.possible, func(p *Service) bool { return (p == nil) == (now == nil) && (p == nil || *p == *now) }) {
			wrong = append(wrong, fmt.Sprintf("the managers have %s as %s, want one of %s", name, show(now), show(k.possible...)))
		}
		if len(k.possible) > 1 {
			k.former = nil
		}
		k.possible = []*Service{now}
	}
	for name := range found {
		if !slices.Contains(names, name) {
			wrong = append(wrong, fmt.Sprintf("the managers have a service %s that nobody has made", name))
		}
	}
	w.drained = slices.Clone(drained)
	return wrong
}

func show(all ...*Service) (text string) {
	for _, s := range all {
		if s == nil {
			text += "[none]"
		} else {
			text += fmt.Sprintf("%+v", *s)
		}
	}
	return text
}

// Task is a task that runs, as the managers say.
type Task struct {
	ID, Service string
	Slot, Node  int
}

// Box is the container of a task, as its node says.
type Box struct {
	Task, Service string
	Node, Version int
	Life          string // what must not change of it
}

// Seen is what is seen of a swarm.
type Seen struct {
	Tasks []Task
	Boxes []Box
}

// Touched is what may have moved or ended tasks.
type Touched struct {
	Services map[string]bool
	Nodes    map[int]bool
}

// Judge compares what is seen with what is wanted, and with what was seen before. It
// returns what is wrong.
func (w *World) Judge(before, after Seen, touched Touched) (wrong []string) {
	fail := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	by := map[string][]Task{}
	tasks := map[string]Task{}
	for _, t := range after.Tasks {
		by[t.Service], tasks[t.ID] = append(by[t.Service], t), t
	}
	for name, k := range w.services {
		want := 0
		s := k.possible[0]
		if s != nil {
			want = s.Replicas
		}
		if s != nil && s.Global {
			for _, d := range w.drained {
				if !d {
					want++
				}
			}
		}
		if len(by[name]) != want {
			fail("%d tasks of %s run, want %d", len(by[name]), name, want)
		}
		places := map[int]bool{}
		for _, t := range by[name] {
			place := t.Slot
			if s != nil && s.Global {
				place = t.Node
			}
			if places[place] {
				fail("two tasks of %s have the place %d", name, place)
			}
			places[place] = true
			if w.drained[t.Node] {
				fail("the task %s of %s runs on node %d, which is drained", t.ID, name, t.Node)
			}
		}
	}
	boxes := map[string]Box{}
	for _, b := range after.Boxes {
		if other, twice := boxes[b.Task]; twice {
			fail("the task %s has a container on node %d and one on node %d", b.Task, other.Node, b.Node)
		}
		boxes[b.Task] = b
		t, known := tasks[b.Task]
		switch k := w.services[b.Service]; {
		case !known:
			fail("node %d runs a container of the task %s of %s, which is not to run", b.Node, b.Task, b.Service)
		case t.Node != b.Node:
			fail("the task %s is on node %d, its container on node %d", b.Task, t.Node, b.Node)
		case k.possible[0] != nil && k.possible[0].Version != b.Version:
			fail("the task %s of %s has version %d, want %d", b.Task, b.Service, b.Version, k.possible[0].Version)
		}
	}
	for id, t := range tasks {
		if _, there := boxes[id]; !there {
			fail("the task %s of %s has no container on node %d", id, t.Service, t.Node)
		}
	}
	for _, b := range before.Boxes {
		now, there := boxes[b.Task]
		switch {
		case there && now.Life != b.Life:
			fail("the container of the task %s was %s and is %s", b.Task, b.Life, now.Life)
		case !there && !touched.Services[b.Service] && !touched.Nodes[b.Node]:
			fail("the container of the task %s of %s on node %d is gone, and nothing has moved it", b.Task, b.Service, b.Node)
		}
	}
	slices.Sort(wrong)
	return wrong
}

// Services returns the services that are certain.
func (w *World) Services() map[string]Service {
	all := map[string]Service{}
	for name, k := range w.services {
		if k.possible[0] != nil {
			all[name] = *k.possible[0]
		}
	}
	return maps.Clone(all)
}

// Touch adds what a step may move.
func (t *Touched) Touch(s Step) {
	if t.Services == nil {
		t.Services, t.Nodes = map[string]bool{}, map[int]bool{}
	}
	if s.Service != "" {
		t.Services[s.Service] = true
	} else {
		t.Nodes[s.Node] = true
	}
	if s.Fault == Gone {
		t.Nodes[s.At] = true
	}
}
