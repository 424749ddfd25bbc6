// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"fmt"
	"holdfast/test/golden"
	"io"
	"strings"
	"testing"
	"text/tabwriter"
)

// usual is the phase that a container in a state mostly has.
func usual(s State) Phase {
	p := Phase{State: s}
	switch s {
	case Running, Paused, Restarting:
		p.Link = Linked
	case Starting:
		p.Attempt = Attempting
	}
	return p
}

// more describes the parts of a phase besides its state.
func more(p Phase) string {
	var words []string
	if p.Link != Unlinked {
		words = append(words, p.Link.String())
	}
	if p.Attempt != NoAttempt {
		words = append(words, p.Attempt.String())
	}
	if p.Committing {
		words = append(words, "committing")
	}
	if p.FileUsers > 0 {
		words = append(words, fmt.Sprintf("file users %d", p.FileUsers))
	}
	if p.Restarts > 0 {
		words = append(words, fmt.Sprintf("restarts %d", p.Restarts))
	}
	return strings.Join(words, ", ")
}

func writeStep(w io.Writer, p Phase, in Input, f Facts) {
	o := p.Step(in, f)
	fmt.Fprintf(w, "%s\t%s\t%s\t→ %s\t%s\t%s\t%s\n", in, p.State, more(p), o.Next.State, more(o.Next), o.Do, o.Why)
}

// TestLifecycleTable compares every pair of state and input with the golden file.
func TestLifecycleTable(t *testing.T) {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for in := range numInputs {
		for s := range numStates {
			writeStep(w, usual(s), in, Facts{HasRun: true})
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	golden.Compare(t, "testdata/step.golden", trimRight(b.Bytes()))
}

// TestPhaseTable compares the outcomes that depend on the other parts of a phase
// with the golden file.
func TestPhaseTable(t *testing.T) {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	section := func(title string, f Facts, phases []Phase, inputs ...Input) {
		fmt.Fprintf(w, "# %s\n", title)
		for _, in := range inputs {
			for _, p := range phases {
				writeStep(w, p, in, f)
			}
			fmt.Fprintln(w)
		}
	}
	var links []Phase
	for l := range numLinks {
		for _, s := range []State{Starting, Running, Unknown, Removing, Dead} {
			links = append(links, Phase{State: s, Link: l})
		}
	}
	section("shims that disconnect and connect", Facts{HasRun: true}, links,
		SawShim, SawShimGone, SawSilence, SawNoSuccessor, SawEnded, SawEndUnseen, SawExited, AskStop, AskForceRemove, AskShim)
	var attempts []Phase
	for a := range numAttempts {
		for _, s := range []State{Starting, Running, Removing} {
			for _, l := range []Link{Unlinked, Linked} {
				attempts = append(attempts, Phase{State: s, Link: l, Attempt: a})
			}
		}
	}
	for _, f := range []Facts{{}, {HasRun: true}, {AutoRemove: true}} {
		section(fmt.Sprintf("starts, of a container with --rm: %v, that has run: %v", f.AutoRemove, f.HasRun), f, attempts, SawStarted, SawStartFailed)
	}
	section("starts", Facts{}, attempts, SawRunning, SawEnded, SawShimGone, AskRemove, AskForceRemove, AskStop)
	var ends []Phase
	for restarts := range 2 {
		for _, s := range []State{Ending, Removing} {
			ends = append(ends, Phase{State: s, Restarts: restarts})
		}
	}
	section("ends", Facts{HasRun: true}, ends, SawGivenBack)
	section("ends of a container with --rm", Facts{HasRun: true, AutoRemove: true}, ends, SawGivenBack, SawRestartBegin, SawRestartOver)
	var lent []Phase
	for _, s := range []State{Running, Paused, Exited} {
		for n := range 2 {
			p := usual(s)
			p.FileUsers = n
			lent = append(lent, p)
		}
	}
	section("files that are read or written", Facts{HasRun: true}, lent, AskStart, AskStop, AskRemove, AskForceRemove, AskFiles, SawFilesReturned)
	var commits []Phase
	for _, c := range []bool{false, true} {
		for _, s := range []State{Running, Paused, Exited} {
			p := usual(s)
			p.Committing = c
			commits = append(commits, p)
		}
	}
	section("commits", Facts{HasRun: true}, commits, AskCommit, SawCommitOver, AskUnpause, AskStop)
	w.Flush()
	golden.Compare(t, "testdata/phase.golden", trimRight(b.Bytes()))
}

// everyPhase calls fn with each phase. Counters are 0 or 1.
func everyPhase(fn func(p Phase)) {
	for s := range numStates {
		for l := range numLinks {
			for a := range numAttempts {
				for bits := range 8 {
					fn(Phase{State: s, Link: l, Attempt: a, Committing: bits&1 > 0, FileUsers: bits >> 1 & 1, Restarts: bits >> 2})
				}
			}
		}
	}
}

// TestStepIsTotal checks that every input has an outcome in every phase, and that
// the outcomes hold the invariants on which the rest of the daemon relies.
func TestStepIsTotal(t *testing.T) {
	everyPhase(func(p Phase) {
		for in := range numInputs {
			for _, f := range []Facts{{}, {HasRun: true}, {AutoRemove: true}, {true, true}} {
				o := p.Step(in, f)
				fail := func(what string) { t.Helper(); t.Errorf("%+v, %s, %+v: %+v: %s", p, in, f, o, what) }
				switch {
				case o.Do == undecided:
					fail("no decision")
				case o.Do == Refuse && (o.Why == "" || !in.ask()), o.Do == Wait && !in.ask():
					fail("a refusal without a reason, or an observation that is refused")
				case o.Do == Refuse && o.Next != p, o.Do == Wait && o.Next != p, o.Do == Nothing && o.Next != p:
					fail("an input that has no effect changes the phase")
				case o.Next.FileUsers < 0 || o.Next.Restarts < 0:
					fail("a negative count")
				case in.ask() && p.Link == Searching && o.Do != Wait:
					fail("a request does not wait for the shim's successor")
				case p.State == Removing && o.Next.State != Removing && o.Next.State != Dead:
					fail("a removal is abandoned")
				case o.Next.State == Exited && p.State != Exited && o.Next.Link == Searching:
					fail("a search for the shim of a container that has ended")
				case o.Do == AutoRemove && !f.AutoRemove:
					fail("removed without --rm")
				}
			}
		}
	})
}

// TestReconcileTable compares every pair of rules and observation with the golden
// file.
func TestReconcileTable(t *testing.T) {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	yes := map[bool]string{true: "yes", false: "no"}
	fmt.Fprintln(w, "desired\tshim\trecord\tprocess\tlive restore\t--rm\tpolicy\tverdict\tphase\tfor an observer")
	for _, d := range []Desired{DesiredCreated, DesiredRunning, DesiredStopped, DesiredRemoved} {
		for shim := range numShimSeen {
			for rec := range numRecords {
				for _, proc := range []bool{false, true} {
					for _, live := range []bool{false, true} {
						for _, wish := range []struct{ rm, restart bool }{{false, false}, {true, false}, {false, true}} {
							o := Observation{Shim: shim, Record: rec, Process: proc}
							v := Reconcile(Rules{Desired: d, LiveRestore: live, AutoRemove: wish.rm, Restart: wish.restart}, o)
							hasRun := rec > RecordCreated && rec != RecordFailed
							found, shown := Loaded(d, rec, hasRun).Found(v, o, hasRun), Loaded(d, rec, hasRun).Shown(v, o, hasRun)
							fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s %s\t%s %s\n", d, shim, rec, yes[proc], yes[live], yes[wish.rm], yes[wish.restart], v,
								found.State, more(found), shown.State, more(shown))
						}
					}
				}
			}
		}
	}
	w.Flush()
	golden.Compare(t, "testdata/reconcile.golden", trimRight(b.Bytes()))
}

func trimRight(b []byte) []byte {
	var out []byte
	for line := range bytes.Lines(b) {
		out = append(out, bytes.TrimRight(line, " \n")...)
		out = append(out, '\n')
	}
	return out
}

// TestNothingUnobservedIsDestroyed checks that a shim that does not answer only
// leads to another observation.
func TestNothingUnobservedIsDestroyed(t *testing.T) {
	for _, d := range []Desired{DesiredCreated, DesiredRunning, DesiredStopped, DesiredRemoved} {
		for rec := range numRecords {
			for _, live := range []bool{false, true} {
				v := Reconcile(Rules{Desired: d, LiveRestore: live, Restart: true}, Observation{Shim: ShimSilent, Record: rec})
				if v != Retry {
					t.Errorf("desired %s, record %s, live restore %v: %s, want retry", d, rec, live, v)
				}
			}
		}
	}
}

// TestRestartTable compares which containers a restart policy starts, for each way
// in which a daemon begins, with the golden file.
func TestRestartTable(t *testing.T) {
	ends := []struct {
		name           string
		desired        Desired
		hasRun         bool
		code, restarts int
	}{
		{"never started", DesiredCreated, false, 0, 0},
		{"its first start failed", DesiredCreated, false, 127, 0},
		{"ended with 0", DesiredRunning, true, 0, 0},
		{"ended with 3", DesiredRunning, true, 3, 0},
		{"ended with 3 for the third time", DesiredRunning, true, 3, 2},
		{"its end was seen by nobody", DesiredRunning, true, 255, 0},
		{"stopped by its user", DesiredStopped, true, 143, 0},
	}
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "daemon\tcontainer")
	policies := []RestartPolicy{{Name: "no"}, {Name: "on-failure"}, {Name: "on-failure", MaxRetries: 2}, {Name: "always"}, {Name: "unless-stopped"}}
	for _, p := range policies {
		fmt.Fprintf(w, "\t%s", p.Name)
		if p.MaxRetries > 0 {
			fmt.Fprintf(w, ":%d", p.MaxRetries)
		}
	}
	fmt.Fprintln(w)
	for begin := range numBegins {
		for _, e := range ends {
			fmt.Fprintf(w, "%s\t%s", begin, e.name)
			for _, p := range policies {
				runs := ShouldRun(begin, p, e.desired, e.hasRun, e.code, e.restarts)
				fmt.Fprintf(w, "\t%s", map[bool]string{true: "runs", false: "-"}[runs])
				if runs && begin == BeginTakeover {
					t.Errorf("a takeover starts a container with %s that %s", p.Name, e.name)
				}
			}
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	golden.Compare(t, "testdata/begin.golden", trimRight(b.Bytes()))
}
