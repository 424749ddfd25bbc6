// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"fmt"
	"holdfast/test/golden"
	"testing"
	"text/tabwriter"
)

// TestLifeTable compares every pair of state and event with the golden file. A pair
// that is not in it changes nothing.
func TestLifeTable(t *testing.T) {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for s := range numStates {
		for e := range numEvents {
			next, do := s.Next(e)
			if next == s && do == Nothing {
				continue
			}
			fmt.Fprintf(w, "%v\t%v\t→ %v", s, e, next)
			if do != Nothing {
				fmt.Fprintf(w, "\t%v", do)
			}
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	got := bytes.TrimRight(b.Bytes(), "\n")
	got = append(got, '\n')
	golden.Compare(t, "testdata/life.golden", got)
}

// TestLifeIsTotal checks what must hold in every life, whatever happens in whatever
// order.
func TestLifeIsTotal(t *testing.T) {
	reached := map[State]bool{}
	var visit func(s State)
	visit = func(s State) {
		if reached[s] {
			return
		}
		reached[s] = true
		for e := range numEvents {
			next, do := s.Next(e)
			if next >= numStates || next.String() == "" || e.String() == "" {
				t.Fatalf("%v, %v: no such state", s, e)
			}
			if e != Reexec && next != s && next < s && s != Deaf {
				t.Errorf("%v, %v: goes back to %v", s, e, next)
			}
			if (next == Closed) != (s == Closed || do&Close != 0) {
				t.Errorf("%v, %v: → %v with %v: closing and the closed state belong together", s, e, next, do)
			}
			if do&SendEOF != 0 && e != Written {
				t.Errorf("%v, %v: EOF is sent before all output is written", s, e)
			}
			if do&Drain != 0 && !next.Ending() || next.Ending() && !s.Ending() && do&(Drain|Discard) == 0 {
				t.Errorf("%v, %v: → %v with %v: output ends exactly when the queue does", s, e, next, do)
			}
			if do&Record != 0 && e != Keys {
				t.Errorf("%v, %v: a detach is recorded without detach keys", s, e)
			}
			if s.Ending() && !next.Ending() {
				t.Errorf("%v, %v: → %v: output begins again", s, e, next)
			}
			if s == Closed && (next != Closed || do != Nothing) {
				t.Errorf("%v after the end", e)
			}
			visit(next)
		}
		if next, do := s.Next(Abort); s != Closed && (next != Closed || do&Close == 0) {
			t.Errorf("%v: an abort does not close", s)
		}
	}
	visit(Joined)
	for s := range numStates {
		if !reached[s] {
			t.Errorf("%v is never reached", s)
		}
	}
}

// Whatever a client and a process do, in any order, EOF is sent at most once
// between two re-execs, and input is closed at most once.
func TestEndsComeOnce(t *testing.T) {
	type life struct {
		state    State
		eof, end bool
	}
	seen := map[life]bool{}
	var visit func(l life)
	visit = func(l life) {
		if seen[l] {
			return
		}
		seen[l] = true
		for e := range numEvents {
			if e == Reexec {
				continue
			}
			next, do := l.state.Next(e)
			n := life{next, l.eof || do&SendEOF != 0, l.end || do&CloseInput != 0}
			if l.eof && do&SendEOF != 0 {
				t.Errorf("%v, %v: EOF is sent twice", l.state, e)
			}
			if l.end && do&CloseInput != 0 {
				t.Errorf("%v, %v: input is closed twice", l.state, e)
			}
			visit(n)
		}
	}
	visit(life{})
}

// A re-exec must lead to a state that the next binary is given, and which itself
// survives re-execs.
func TestEveryStateIsHandedOver(t *testing.T) {
	for s := range numStates {
		next, _ := s.Next(Reexec)
		if next == Closed {
			continue // there is nothing to hand over
		}
		p, ok := progress[next]
		if !ok {
			t.Errorf("%v: → %v can't be handed over", s, next)
			continue
		}
		if got := p.state(); got != next {
			t.Errorf("%v is handed over as %+v, which is read as %v", next, p, got)
		}
		if again, _ := next.Next(Reexec); again != next {
			t.Errorf("%v becomes %v, and %v by a second re-exec", s, next, again)
		}
	}
	for i := range 16 {
		p := Progress{i&1 != 0, i&2 != 0, i&4 != 0, i&8 != 0}
		if _, ok := progress[p.state()]; !ok {
			t.Errorf("%+v is read as %v", p, p.state())
		}
	}
}
