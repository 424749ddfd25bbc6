package container

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"text/tabwriter"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs from what the code says; run with -update and review the diff:\n%s", path, got)
	}
}

// TestLifecycleTable keeps every pair of state and input.
func TestLifecycleTable(t *testing.T) {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for in := range numInputs {
		for s := range numStates {
			o := Step(s, in)
			fmt.Fprintf(w, "%s\t%s\t→ %s\t%s\t%s\n", in, s, o.Next, o.Do, o.Why)
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	golden(t, "step.golden", trimRight(b.Bytes()))
}

// TestReconcileTable keeps every pair of wish and observation.
func TestReconcileTable(t *testing.T) {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	yes := map[bool]string{true: "yes", false: "no"}
	fmt.Fprintln(w, "desired\tshim\trecord\tprocess\tlive restore\t--rm\tpolicy\tverdict")
	for _, d := range []Desired{DesiredCreated, DesiredRunning, DesiredStopped, DesiredRemoved} {
		for shim := range numShimSeen {
			for rec := range numRecords {
				for _, proc := range []bool{false, true} {
					for _, live := range []bool{false, true} {
						for _, wish := range []struct{ rm, restart bool }{{false, false}, {true, false}, {false, true}} {
							v := Reconcile(Rules{Desired: d, LiveRestore: live, AutoRemove: wish.rm, Restart: wish.restart},
								Observation{Shim: shim, Record: rec, Process: proc})
							fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", d, shim, rec, yes[proc], yes[live], yes[wish.rm], yes[wish.restart], v)
						}
					}
				}
			}
		}
	}
	w.Flush()
	golden(t, "reconcile.golden", trimRight(b.Bytes()))
}

func trimRight(b []byte) []byte {
	var out []byte
	for line := range bytes.Lines(b) {
		out = append(out, bytes.TrimRight(line, " \n")...)
		out = append(out, '\n')
	}
	return out
}

// TestNothingUnobservedIsDestroyed: a shim that does not answer never leads to
// anything but another attempt.
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

// TestRestartPolicyAtDaemonStart is Docker's table of restart policies.
func TestRestartPolicyAtDaemonStart(t *testing.T) {
	for _, c := range []struct {
		name     string
		policy   RestartPolicy
		desired  Desired
		hasRun   bool
		code     int
		restarts int
		want     bool
	}{
		{"no never", RestartPolicy{}, DesiredRunning, true, 1, 0, false},
		{"always after a crash", RestartPolicy{Name: "always"}, DesiredRunning, true, 0, 0, true},
		{"always after a manual stop", RestartPolicy{Name: "always"}, DesiredStopped, true, 0, 0, true},
		{"always, never started", RestartPolicy{Name: "always"}, DesiredCreated, false, 0, 0, false},
		{"unless-stopped after a crash", RestartPolicy{Name: "unless-stopped"}, DesiredRunning, true, 0, 0, true},
		{"unless-stopped after a manual stop", RestartPolicy{Name: "unless-stopped"}, DesiredStopped, true, 0, 0, false},
		{"on-failure after success", RestartPolicy{Name: "on-failure"}, DesiredRunning, true, 0, 0, false},
		{"on-failure after failure", RestartPolicy{Name: "on-failure"}, DesiredRunning, true, 3, 0, true},
		{"on-failure within its limit", RestartPolicy{Name: "on-failure", MaxRetries: 3}, DesiredRunning, true, 3, 2, true},
		{"on-failure at its limit", RestartPolicy{Name: "on-failure", MaxRetries: 3}, DesiredRunning, true, 3, 3, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := ShouldRun(c.policy, c.desired, c.hasRun, c.code, c.restarts); got != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
}
