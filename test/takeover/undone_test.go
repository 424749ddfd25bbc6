// SPDX-License-Identifier: Apache-2.0

package takeover

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

// needed returns a daemon, and a file that it reads at every start. If the file
// can't be read, its successor fails, and so does the daemon itself when it
// takes its duties back.
func needed(t *testing.T) (d *running, file string) {
	t.Helper()
	d = start(t, kit.Options{LiveRestore: true})
	return d, filepath.Join(d.DataRoot, "engine-id")
}

// spoil makes a file unreadable.
func spoil(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
}

// hang makes every read of a file block.
func hang(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
}

// ends waits for the exit of a daemon that can't continue.
func (r *running) ends(within time.Duration) {
	r.t.Helper()
	select {
	case <-r.Exited():
	case <-time.After(within):
		r.t.Fatalf("the daemon neither serves nor exits:\n%s", r.Log())
	}
	if code := r.WaitExit(); code != 1 {
		r.t.Errorf("the daemon exited with %d, want 1", code)
	}
}

// Whatever fails in a handover, the daemon either serves or exits with status
// 1. It never holds the lock without serving. The containers run on, and the
// next daemon finds them.
func TestHandoverThatCantBeTakenBackEndsTheDaemon(t *testing.T) {
	t.Parallel()
	// The successor has 20 s for its restore, and the daemon another 20 s for
	// taking its duties back.
	const most = 90 * time.Second
	for _, c := range []struct {
		name string
		do   func(t *testing.T, file string)
		told bool // SIGTERM is sent while it hangs
	}{
		{"what it needs is no more", spoil, false},
		{"what it needs hangs", hang, false},
		{"it is told to stop while it hangs", hang, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d, file := needed(t)
			was, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			c.do(t, file)
			if c.told {
				go func() {
					tick := time.NewTicker(10 * time.Millisecond)
					defer tick.Stop()
					for !strings.Contains(d.Log(), "takes everything back") {
						<-tick.C
					}
					d.Signal(unix.SIGTERM)
				}()
			}
			if err := d.TryTakeover(); err == nil {
				t.Fatal("the takeover succeeded")
			}
			d.ends(most)
			if err := errors.Join(os.Remove(file), os.WriteFile(file, was, 0o600)); err != nil {
				t.Fatal(err)
			}
			d.Start()
			d.unchanged()
			d.probe.Stop()
		})
	}
}

// A missing pid file must not keep a daemon from serving, because only
// administrators read it.
func TestHandoverIsTakenBackWithoutAPidFile(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "run")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d := start(t, kit.Options{LiveRestore: true, Config: map[string]any{"pidfile": filepath.Join(dir, "pid")}})
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // so that the pid file's directory can't be made
		t.Fatal(err)
	}
	if err := d.TryTakeover(); err == nil {
		t.Fatal("the takeover succeeded")
	}
	d.unchanged()
	d.probe.Stop()
}

// A successor that waits for a daemon which does not answer exits on SIGTERM.
func TestSuccessorThatWaitsEndsWhenItIsTold(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{LiveRestore: true})
	d.Holdfast("run", "-d", "--name", "deaf", image, "sh", "-c", "trap '' TERM; while :; do usleep 50000; done")
	stop := make(chan kit.Result, 1)
	go func() { stop <- d.TryHoldfast("stop", "-t", "600", "deaf") }()
	for e := range values[struct{ Action string }](open(t, d.Daemon, "GET", `/events?since=1&filters={"container":["deaf"]}`)) {
		if e.Action == "kill" {
			break // a request is under way, and the daemon waits for it
		}
	}
	cmd := d.Command()
	cmd.Args = append(cmd.Args, "--takeover")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for told := false; ; {
		select {
		case <-ended:
			if code := cmd.ProcessState.ExitCode(); code != 1 || !told {
				t.Errorf("signal sent: %v; the successor exited with %d: %s", told, code, out.String())
			}
			d.Holdfast("kill", "deaf")
			<-stop
			d.unchanged()
			d.probe.Stop()
			return
		case <-tick.C:
			if !told && strings.Contains(d.Log(), "Handing over") {
				told = true
				_ = cmd.Process.Signal(unix.SIGTERM)
			}
		case <-late:
			t.Fatal("the successor still waits: " + out.String())
		}
	}
}
