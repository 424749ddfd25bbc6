// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"holdfast/test/golden"
)

const (
	diagramBegins = "<!-- The diagram and the table below are written by go test ./internal/container -run StatesDiagram -update -->\n"
	diagramEnds   = "<!-- end of the table -->\n"
)

// runs are the states that the diagram draws as one box: an arrow that leaves
// each of them leaves the box.
var runs = []State{Starting, Running, Paused, Restarting}

// usualPhases are the phases of a state from which the diagram draws arrows: the
// usual one, all that the outcome of a start may meet, and that without a shim.
func usualPhases(s State) []Phase {
	list := []Phase{usual(s)}
	if s == Starting {
		for a := range numAttempts {
			list = append(list, Phase{State: s, Attempt: a})
		}
	}
	if s.Alive() {
		list = append(list, Phase{State: s, Link: Searching})
	}
	return list
}

// arrows are the inputs that lead from one state to another one.
func arrows() map[State]map[State][]Input {
	all := map[State]map[State][]Input{}
	for s := range numStates {
		all[s] = map[State][]Input{}
		facts := []Facts{{}}
		if s != Created {
			facts = append(facts, Facts{HasRun: true})
		}
		for in := range numInputs {
			for _, p := range usualPhases(s) {
				for _, f := range facts {
					to := p.Step(in, f).Next.State
					if to != s && !slices.Contains(all[s][to], in) {
						all[s][to] = append(all[s][to], in)
					}
				}
			}
		}
	}
	return all
}

// usualWay reports whether an arrow belongs to the usual way of a container. The
// others are for what a daemon finds or loses: a container whose state changed
// while it was not observed.
func usualWay(from State, in Input) bool {
	switch in {
	case SawSilence, SawEndUnseen, SawExited:
		return false
	}
	switch from {
	case Unknown:
		return false
	case Created, Exited:
		return in.ask() || in == SawRemoving
	}
	return true
}

// statesDiagram is the usual way as a state diagram in the language of Mermaid.
func statesDiagram() []byte {
	all := arrows()
	for from, to := range all {
		for s := range to {
			to[s] = slices.DeleteFunc(to[s], func(in Input) bool { return !usualWay(from, in) })
		}
	}
	var b bytes.Buffer
	arrow := func(indent string, from string, to State, inputs []Input) {
		if len(inputs) == 0 {
			return
		}
		names := make([]string, len(inputs))
		for i, in := range inputs {
			names[i] = in.String()
		}
		fmt.Fprintf(&b, "%s%s --> %s: %s\n", indent, from, to, strings.Join(names, ", "))
	}
	// shared are the inputs that lead from each state of the box to a state
	// outside.
	shared := func(to State) []Input {
		return slices.DeleteFunc(slices.Clone(all[runs[0]][to]), func(in Input) bool {
			return slices.ContainsFunc(runs, func(s State) bool { return !slices.Contains(all[s][to], in) })
		})
	}

	b.WriteString("stateDiagram-v2\n    [*] --> created\n    state up {\n")
	for _, from := range runs {
		for _, to := range runs {
			arrow("        ", from.String(), to, all[from][to])
		}
	}
	b.WriteString("    }\n")
	for to := range numStates {
		if slices.Contains(runs, to) {
			continue
		}
		arrow("    ", "up", to, shared(to))
		for _, from := range runs {
			own := slices.DeleteFunc(slices.Clone(all[from][to]), func(in Input) bool { return slices.Contains(shared(to), in) })
			arrow("    ", from.String(), to, own)
		}
	}
	for from := range numStates {
		if slices.Contains(runs, from) {
			continue
		}
		for to := range numStates {
			arrow("    ", from.String(), to, all[from][to])
		}
	}
	b.WriteString("    removing --> [*]\n")
	return b.Bytes()
}

// foundTable is all that is no usual way: by input and the state that it leads to.
func foundTable() string {
	all := arrows()
	var b strings.Builder
	b.WriteString("| input | from | to |\n|---|---|---|\n")
	for in := range numInputs {
		for to := range numStates {
			var from []string
			for s := range numStates {
				if slices.Contains(all[s][to], in) && !usualWay(s, in) {
					from = append(from, s.String())
				}
			}
			if len(from) > 0 {
				fmt.Fprintf(&b, "| %s | %s | %s |\n", in, strings.Join(from, ", "), to)
			}
		}
	}
	return b.String()
}

// TestStatesDiagram keeps the diagram in docs/architecture.md equal to the
// lifecycle.
func TestStatesDiagram(t *testing.T) {
	diagram := statesDiagram()
	golden.Compare(t, "testdata/states.mmd", diagram)
	want := "```mermaid\n" + string(diagram) + "```\n\nChanges of state when a daemon finds a container, or loses its shim:\n\n" + foundTable()

	golden.Section{
		Path: "../../docs/architecture.md", Begin: diagramBegins, End: diagramEnds,
		Command: "go test ./internal/container -run StatesDiagram -update",
	}.Keep(t, want)
}
