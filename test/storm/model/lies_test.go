// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"testing"
)

// honest is a small engine of one slot, which answers as Docker does. It is written
// apart from the model's outcomes, so that the two check each other.
type honest struct {
	specs  []Spec
	there  bool
	gen    int
	status Status
	alt    bool
	nets   uint8
	exit   int
	pid    int
	pids   int
}

func (e *honest) spec() Spec { return e.specs[e.gen] }

func (e *honest) up() bool { return e.status == Running || e.status == Paused }

func (e *honest) run() {
	e.pids++
	e.status, e.pid, e.exit = Running, e.pids, 0
}

func (e *honest) end(code int) {
	e.status, e.exit, e.pid = Exited, code, 0
	if e.spec().Remove {
		e.there = false
	}
}

// pass lets the program end whose time is over.
func (e *honest) pass() {
	if !e.there || e.status != Running || e.spec().Life == 0 {
		return
	}
	code := e.spec().Code
	if p := e.spec().Policy; p == Always || p == OnFailure && code != 0 {
		e.run()
		return
	}
	e.end(code)
}

func (e *honest) halt(o Op) {
	code := StopCode
	if e.spec().Stubborn || e.status == Paused && o.Time == 0 {
		code = 137
	}
	e.end(code)
}

func (e *honest) do(o Op, gen int) Result {
	if o.Kind == Create {
		if e.there {
			return Conflict
		}
		*e = honest{specs: e.specs, pids: e.pids, there: true, gen: gen, status: Created, nets: Bridge}
		if e.spec().Network {
			e.nets = Own
		}
		return OK
	}
	if !e.there {
		if o.Kind == Prune {
			return OK
		}
		return Missing
	}
	switch o.Kind {
	case Start:
		switch e.status {
		case Running:
			return Same
		case Paused:
			return Refused
		}
		e.run()
	case Stop:
		if !e.up() {
			return Same
		}
		e.halt(o)
	case Restart:
		e.run()
	case Kill:
		switch {
		case !e.up():
			return Refused
		case o.N == 0:
			e.end(137)
		case o.N == 1 && !e.spec().Stubborn:
			e.end(StopCode)
		default:
			e.status = Running
		}
	case Pause, Unpause:
		from, to := Running, Paused
		if o.Kind == Unpause {
			from, to = to, from
		}
		if e.status != from {
			return Refused
		}
		e.status = to
	case Rename:
		if e.alt == (o.N%2 == 1) {
			return Refused
		}
		e.alt = !e.alt
	case Remove:
		if e.up() && o.N == 0 {
			return Refused
		}
		e.there = false
	case Prune:
		if !e.up() {
			e.there = false
		}
	case Top:
		if !e.up() {
			return Refused
		}
	case Exec, ExecTTY, ExecDetach, ExecLong:
		if e.status != Running {
			return Refused
		}
	case NetJoin, NetLeave:
		bit := Bridge
		if o.N%2 == 1 {
			bit = Own
		}
		if (e.nets&bit != 0) == (o.Kind == NetJoin) || e.status == Paused {
			return Refused
		}
		e.nets ^= bit
	}
	return OK
}

func (e *honest) observe() Observation {
	if !e.there {
		return Observation{}
	}
	o := Observation{Status: e.status, Gen: e.gen, Alt: e.alt, Exit: e.exit}
	if e.up() {
		o.Exit, o.Identity = 0, fmt.Sprint("pid ", e.pid)
	}
	return o
}

// lie makes an honest engine a wrong one: in what it does, says, or shows. before
// is the engine as it was before the operation.
type lie struct {
	name string
	tell func(e *honest, before honest, o Op, r *Result)
	show func(e *honest, o *Observation)
}

var lies = []lie{
	{name: "a start that does nothing is answered as done", tell: func(e *honest, before honest, o Op, r *Result) {
		if o.Kind == Start && *r == OK {
			*e = before
		}
	}},
	{name: "a stop that does nothing is answered as done", tell: func(e *honest, before honest, o Op, r *Result) {
		if o.Kind == Stop && *r == OK {
			*e = before
		}
	}},
	{name: "a removal that does nothing is answered as done", tell: func(e *honest, before honest, o Op, r *Result) {
		if o.Kind == Remove && *r == OK {
			*e = before
		}
	}},
	{name: "a rename that does nothing is answered as done", tell: func(e *honest, before honest, o Op, r *Result) {
		if o.Kind == Rename && *r == OK {
			*e = before
		}
	}},
	{name: "a restart keeps the process", tell: func(e *honest, before honest, o Op, r *Result) {
		if o.Kind == Restart && before.up() {
			*e = before
		}
	}},
	{name: "a refused request is done all the same", tell: func(e *honest, before honest, o Op, r *Result) {
		if o.Kind == Pause && *r == OK {
			*r = Refused
		}
	}},
	{name: "an exec in a paused container is answered as done", tell: func(_ *honest, _ honest, o Op, r *Result) {
		if o.Kind == Exec && *r == Refused {
			*r = OK
		}
	}},
	{name: "a request for a container that is there is answered with not found", tell: func(_ *honest, _ honest, o Op, r *Result) {
		if o.Kind == Exec && *r == OK {
			*r = Missing
		}
	}},
	{name: "a request for a container that is gone is answered as done", tell: func(_ *honest, _ honest, o Op, r *Result) {
		if o.Kind == Stop && *r == Missing {
			*r = OK
		}
	}},
	{name: "a name is given twice", tell: func(_ *honest, _ honest, o Op, r *Result) {
		if *r == Conflict {
			*r = OK
		}
	}},
	{name: "a running container is removed without force", tell: func(e *honest, before honest, o Op, r *Result) {
		if o.Kind == Remove && *r == Refused {
			e.there, *r = false, OK
		}
	}},
	{name: "a prune takes a running container", tell: func(e *honest, _ honest, o Op, _ *Result) {
		if o.Kind == Prune {
			e.there = false
		}
	}},
	{name: "a network is joined twice", tell: func(_ *honest, before honest, o Op, r *Result) {
		if o.Kind == NetJoin && *r == Refused && before.status != Paused {
			*r = OK
		}
	}},
	{name: "a container that was stopped is started again", tell: func(e *honest, _ honest, o Op, r *Result) {
		if o.Kind == Stop && *r == OK && e.there {
			e.run()
		}
	}},
	{name: "exit codes are lost", show: func(_ *honest, o *Observation) { o.Exit = 0 }},
	{name: "a frozen container is shown as running", show: func(_ *honest, o *Observation) {
		if o.Status == Paused {
			o.Status = Running
		}
	}},
	{name: "an ended container is shown as running", show: func(_ *honest, o *Observation) {
		if o.Status == Exited {
			o.Status = Running
		}
	}},
	{name: "a running container is shown as ended", show: func(_ *honest, o *Observation) {
		if o.Status == Running {
			o.Status = Exited
		}
	}},
	{name: "a container is lost", show: func(e *honest, o *Observation) {
		if e.pids%7 == 6 {
			*o = Observation{}
		}
	}},
	{name: "its process is replaced without a restart", show: func(e *honest, o *Observation) {
		if o.Identity != "" && e.nets == Bridge|Own {
			o.Identity += "0"
		}
	}},
	{name: "the container before is shown", show: func(e *honest, o *Observation) { o.Gen = max(0, o.Gen-1) }},
	{name: "the old name is shown", show: func(_ *honest, o *Observation) { o.Alt = false }},
}

// tryLie plays operations on an engine that tells a lie, and returns what the model
// says. Some answers are lost, of which some were done.
func tryLie(seed uint64, l lie) error {
	d := NewDice(seed)
	s, e := NewSlot(), &honest{}
	for range 80 {
		o := newOp(d, 0, 1)
		if o.Kind == Create && e.alt && e.there || o.Spec != nil && o.Spec.Needs() {
			continue
		}
		gen := e.gen
		if o.Kind == Create {
			gen = s.NewGen(*o.Spec)
			e.specs = append(e.specs, *o.Spec)
		}
		before, a := *e, Answer{Late: true}
		if d.N(8) > 0 {
			a.Result = e.do(o, gen)
			if l.tell != nil {
				l.tell(e, before, o, &a.Result)
			}
		} else if d.N(2) == 0 {
			e.do(o, gen)
		}
		if err := s.Do(o, gen, a); err != nil {
			return err
		}
		if d.N(4) == 0 {
			e.pass()
		}
		seen := e.observe()
		if l.show != nil {
			l.show(e, &seen)
		}
		if err := s.Observe(seen); err != nil {
			return fmt.Errorf("after %s, %s: %w", o, a.Result, err)
		}
	}
	return nil
}

func TestHonestEngineIsNeverRefused(t *testing.T) {
	for seed := range uint64(120) {
		if err := tryLie(seed, lie{}); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
}

// A model that allows everything finds nothing: each of these wrong engines has to
// be refused, although every eighth answer is lost.
func TestModelRefusesWrongEngines(t *testing.T) {
	for _, l := range lies {
		t.Run(l.name, func(t *testing.T) {
			found, seed := 0, uint64(0)
			for ; seed < 80 && found < 3; seed++ {
				if tryLie(seed, l) != nil {
					found++
				}
			}
			if found < 3 {
				t.Errorf("refused in %d of %d plays", found, seed)
			}
		})
	}
}
