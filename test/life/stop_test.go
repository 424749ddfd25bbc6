// SPDX-License-Identifier: Apache-2.0

package life

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"holdfast/test/kit"
)

// engine is a daemon that understands Docker's command line: Holdfast or
// dockerd.
type engine struct {
	*kit.Daemon
	what string
}

// both starts Holdfast and a dockerd, both with the image.
func both(t *testing.T, live bool) []engine {
	t.Helper()
	peer := kit.StartPeer(t, kit.PeerOptions{Config: map[string]any{"live-restore": live}})
	ours := kit.Start(t, kit.Options{LiveRestore: live})
	for _, d := range []*kit.Daemon{peer.Daemon, ours} {
		d.Load(image, kit.Busybox(t, nil))
	}
	return []engine{{peer.Daemon, "dockerd"}, {ours, "holdfast"}}
}

// patience is the time limit for an operation that should finish at once.
const patience = 60 * time.Second

// asked is a command that runs while the test continues.
type asked struct {
	what string
	done chan kit.Result
}

func (e engine) ask(args ...string) asked {
	a := asked{strings.Join(args, " "), make(chan kit.Result, 1)}
	go func() { a.done <- e.TryDocker(args...) }()
	return a
}

// answer waits for a command and returns its result.
func (a asked) answer(t *testing.T) kit.Result {
	t.Helper()
	select {
	case r := <-a.done:
		a.done <- r // for the next caller
		return r
	case <-time.After(patience):
		t.Fatalf("%s did not finish within %v", a.what, patience)
		return kit.Result{}
	}
}

func (a asked) waits() bool {
	select {
	case r := <-a.done:
		a.done <- r
		return false
	default:
		return true
	}
}

// event waits for the nth event of an action.
func (e engine) event(t *testing.T, container, action string, nth int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := e.DockerCommand(ctx, "events", "--since", "1", "--filter", "container="+container, "--filter", "event="+action, "--format", "{{.Action}}")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cancel()
	buf, seen := make([]byte, 256), ""
	for strings.Count(seen, "\n") < nth {
		n, err := out.Read(buf)
		seen += string(buf[:n])
		if err != nil {
			t.Fatalf("%s: %d of %d events %s: %v", e.what, strings.Count(seen, "\n"), nth, action, err)
		}
	}
}

// While one stop waits, other clients can end the container sooner and work in
// it. Each row is also run on a dockerd.
func TestSharperStopWinsWhileAnotherWaits(t *testing.T) {
	const deaf = "trap '' TERM; trap : USR1; while :; do usleep 50000; done"
	for _, e := range both(t, true) {
		for _, c := range []struct {
			second string // NAME stands for the container
			ends   bool   // the second command ends the container, and with it the first stop
			waits  bool   // the second command waits until the container ends
			after  string // state and exit code
		}{
			{"stop -t 1 NAME", true, false, "exited 137"},
			{"stop -s KILL NAME", true, false, "exited 137"},
			{"stop -s USR1 -t 1 NAME", true, false, "exited 137"},
			{"kill NAME", true, false, "exited 137"},
			{"restart -t 1 NAME", true, false, "running 0"},
			{"restart -s KILL NAME", true, false, "running 0"},
			{"rm -f NAME", true, false, ""},
			{"stop -t 900 NAME", false, true, "running 0"},
			{"restart -t 900 NAME", false, true, "running 0"},
			{"kill -s USR1 NAME", false, false, "running 0"},
			{"exec NAME echo hi", false, false, "running 0"},
			{"cp NAME:/etc/hostname -", false, false, "running 0"},
			{"update --restart no NAME", false, false, "running 0"},
			{"rename NAME NAME", false, false, "running 0"},
			{"start NAME", false, false, "running 0"},
			{"top NAME", false, false, "running 0"},
			{"pause NAME", false, false, "paused 0"},
		} {
			t.Run(e.what+" "+c.second, func(t *testing.T) {
				id := e.Docker("run", "-d", image, "sh", "-c", deaf+"; true")
				name := e.Docker("inspect", "-f", "{{.Name}}", id)[1:]
				second := strings.Fields(strings.ReplaceAll(c.second, "NAME", id))
				if second[0] == "rename" {
					second[2] = name + "2"
				}
				first := e.ask("stop", "-t", "600", id)
				e.event(t, id, "kill", 1)
				next := e.ask(second...)
				if c.waits {
					e.event(t, id, "kill", 2)
				} else if r := next.answer(t); r.Code != 0 {
					t.Errorf("%s: %+v", c.second, r)
				}
				if c.ends {
					if r := first.answer(t); r.Code != 0 {
						t.Errorf("the first stop: %+v", r)
					}
				} else if !first.waits() {
					t.Error("the first stop returned although the container still runs")
				}
				if c.waits && !next.waits() {
					t.Error("the second command returned although the container still runs")
				}
				got := e.TryDocker("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", id)
				if strings.TrimSpace(got.Stdout) != c.after {
					t.Errorf("the container is %q, want %q", strings.TrimSpace(got.Stdout), c.after)
				}
				// A third client removes the container. All clients must get an
				// answer.
				if r := e.ask("rm", "-f", id).answer(t); r.Code != 0 {
					t.Errorf("rm -f: %+v", r)
				}
				first.answer(t)
				next.answer(t)
			})
		}
	}
}

// Two dozen clients stop a container at the same time, one of them without a
// timeout.
func TestAllWhoStopAContainerAreAnsweredByItsEnd(t *testing.T) {
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(t, nil))
	e := engine{d, "holdfast"}
	for _, takeover := range []bool{false, true} {
		id := d.Docker("run", "-d", "--restart", "always", image, "sh", "-c", "trap '' TERM; while :; do usleep 50000; done")
		var all []asked
		for i := range 8 {
			all = append(all, e.ask("stop", "-t", fmt.Sprint(300+i), id), e.ask("wait", id))
		}
		e.event(t, id, "kill", 8)
		if takeover {
			// The daemon is killed while the stop requests wait.
			d.Kill9()
			d.Start()
			all = all[:0]
			all = append(all, e.ask("wait", id))
		}
		all = append(all, e.ask("stop", "-t", "0", id))
		for _, a := range all {
			if r := a.answer(t); r.Code != 0 {
				t.Errorf("%s: %+v", a.what, r)
			}
		}
		if got := d.Docker("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}", id); got != "exited 137 0" {
			t.Errorf("the container is %q", got)
		}
		d.Docker("rm", id)
	}
}

// eventually polls until a condition holds. The condition returns a description
// of the state for the failure message.
func eventually(t *testing.T, is func() (bool, string)) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for {
		ok, what := is()
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Error(what)
			return
		}
	}
}
