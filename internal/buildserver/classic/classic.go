// SPDX-License-Identifier: Apache-2.0

// Package classic renders the progress of a build as the text that Docker's first
// builder wrote, which programs read: a line for each instruction of the Dockerfile
// with its number, the output of RUN, and an ID after each. It is pure.
//
// BuildKit carries out steps side by side, skips stages that are not needed and has
// no steps for instructions that only change the image's config. The text keeps the
// order of the Dockerfile: output of a step that runs ahead is held back until its
// turn.
package classic

import (
	"fmt"
	"strconv"
	"strings"
)

// Step is an instruction of a Dockerfile.
type Step struct {
	Text string // as it is written
	// Stage and Index are what BuildKit calls the step: its stage, "" if there is
	// only one, and its number in the stage from 1. Index 0 is an instruction that
	// BuildKit has no step for.
	Stage string
	Index int
	// Runs: the step is a RUN. Base: it is a FROM.
	Runs, Base bool
}

// Vertex is a step of BuildKit's, as it is now.
type Vertex struct {
	ID                         string // digest
	Name                       string
	Started, Completed, Cached bool
}

// Formatter renders one build.
type Formatter struct {
	steps  []Step
	next   int  // index in steps
	opened bool // the line of the next step is written
	states map[place]*state
	byID   map[string]*state
	stages map[string]bool // that BuildKit carries out
	last   string          // ID of the last step
}

type place struct {
	stage string
	index int
}

type state struct {
	Vertex
	held []string // output that waits for the step's turn
}

// New makes a formatter for the instructions of a Dockerfile up to the end of the
// last stage that is wanted. Without steps, as when the Dockerfile is not known in
// advance, BuildKit's steps are shown as they begin.
func New(steps []Step) *Formatter {
	return &Formatter{steps: steps, states: map[place]*state{}, byID: map[string]*state{}, stages: map[string]bool{}}
}

// label is what the name of a step of a Dockerfile begins with, as in
// "[linux/amd64 base 2/3] RUN make".
type label struct {
	place
	of   string // number of steps in the stage
	text string
}

func parseName(name string) (label, bool) {
	inside, text, ok := strings.Cut(name, "] ")
	inside, opened := strings.CutPrefix(inside, "[")
	words := strings.Fields(inside)
	if !ok || !opened || len(words) == 0 {
		return label{}, false
	}
	number, of, ok := strings.Cut(words[len(words)-1], "/")
	index, err := strconv.Atoi(number)
	if !ok || err != nil {
		return label{}, false
	}
	l := label{place{index: index}, of, text}
	if n := len(words) - 2; n >= 0 && !strings.Contains(words[n], "/") {
		l.stage = words[n]
	}
	return l, true
}

// Vertices takes the news of some steps, and returns text.
func (f *Formatter) Vertices(all []Vertex) string {
	var out strings.Builder
	for _, v := range all {
		l, ok := parseName(v.Name)
		if !ok {
			continue
		}
		s := f.states[l.place]
		if s == nil {
			s = &state{}
			f.states[l.place] = s
		}
		before := s.Vertex
		s.Vertex = v
		s.Started = v.Started || before.Started || v.Completed
		s.Completed = v.Completed || before.Completed
		s.Cached = v.Cached || before.Cached
		f.byID[v.ID] = s
		f.stages[l.stage] = true
		if len(f.steps) == 0 {
			f.show(&out, s, before, l)
		}
	}
	f.advance(&out)
	return out.String()
}

// show writes a step of an unknown Dockerfile.
func (f *Formatter) show(out *strings.Builder, s *state, before Vertex, l label) {
	if s.Started && !before.Started {
		fmt.Fprintf(out, "Step %d/%s : %s\n", l.index, l.of, l.text)
	}
	if s.Completed && !before.Completed {
		f.finish(out, s)
	}
}

func (f *Formatter) finish(out *strings.Builder, s *state) {
	if s.Cached {
		out.WriteString(" ---> Using cache\n")
	}
	f.last = short(s.ID)
	out.WriteString(" ---> " + f.last + "\n")
}

// Log takes output of a step, and returns text.
func (f *Formatter) Log(id, text string) string {
	s := f.byID[id]
	if s == nil {
		return text
	}
	if len(f.steps) == 0 || f.opened && f.current() == s {
		return text
	}
	s.held = append(s.held, text)
	return ""
}

// End returns the rest of the text. If the build has failed, instructions that it did
// not reach are left out.
func (f *Formatter) End(ok bool) string {
	var out strings.Builder
	f.advance(&out)
	for ; f.next < len(f.steps); f.next++ {
		s := f.current()
		if s == nil || !s.Started && !ok {
			continue
		}
		f.open(&out, s)
		if s.Completed {
			f.finish(&out, s)
		}
		f.opened = false
	}
	return out.String()
}

// current is BuildKit's step for the next instruction, or nil.
func (f *Formatter) current() *state {
	if f.next >= len(f.steps) {
		return nil
	}
	s := f.steps[f.next]
	if s.Index == 0 {
		return nil
	}
	return f.states[place{s.Stage, s.Index}]
}

// advance writes what is due.
func (f *Formatter) advance(out *strings.Builder) {
	for len(f.stages) > 0 && f.next < len(f.steps) {
		step := f.steps[f.next]
		switch s := f.current(); {
		case step.Stage != "" && !f.stages[step.Stage]:
			f.next++ // a stage that is not needed
		case step.Index == 0, s == nil && step.Base:
			// Stages with one base share one step of BuildKit's.
			f.open(out, nil)
			if f.last != "" {
				out.WriteString(" ---> " + f.last + "\n")
			}
			f.opened = false
			f.next++
		case s == nil || !s.Started:
			return
		default:
			f.open(out, s)
			if !s.Completed {
				return
			}
			f.finish(out, s)
			f.opened = false
			f.next++
		}
	}
}

// open writes the line of the next instruction, unless it is written.
func (f *Formatter) open(out *strings.Builder, s *state) {
	step := f.steps[f.next]
	if !f.opened {
		fmt.Fprintf(out, "Step %d/%d : %s\n", f.next+1, len(f.steps), step.Text)
		f.opened = true
		if s != nil && step.Runs && !s.Cached {
			out.WriteString(" ---> Running in " + short(s.ID) + "\n")
		}
	}
	if s != nil {
		for _, text := range s.held {
			out.WriteString(text)
		}
		s.held = nil
	}
}

// short is the form of an ID that the text has.
func short(id string) string {
	_, hex, _ := strings.Cut(id, ":")
	if len(hex) < 12 {
		return "000000000000"
	}
	return hex[:12]
}
