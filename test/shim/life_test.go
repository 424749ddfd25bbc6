// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"holdfast/internal/shim/client"
	"holdfast/internal/shim/proto"
	"holdfast/test/kit"
)

func TestExitCodeIsExact(t *testing.T) {
	for _, tt := range []struct {
		name, script string
		code         int
	}{
		{"success", "true", 0},
		{"failure", "exit 3", 3},
		{"255 is not 0", "exit 255", 255},
		{"killed by a signal", "kill -9 $$; sleep 100", 9},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBox(t, tt.script)
			if tt.code == 9 {
				// PID 1 of a pid namespace ignores its own signals, so this
				// container uses the host's namespace.
				b.spec["linux"].(map[string]any)["namespaces"] = []any{ns("mount")}
				delete(b.spec, "hostname")
				tt.code = 137
			}
			s, ev := b.started()
			die := ev.action(proto.ActionDie)
			if die.State.ExitCode != tt.code || die.Attributes["exitCode"] != itoa(tt.code) {
				t.Errorf("die: exit code %d, attribute %q, want %d", die.State.ExitCode, die.Attributes["exitCode"], tt.code)
			}
			st := b.ended(s)
			if st.Status != proto.StatusExited || st.ExitCode != tt.code || st.Pid != 0 || !st.Finished.After(st.Started) {
				t.Errorf("state: %+v", st)
			}
			durable, err := client.ReadExit(b.boot.DataDir)
			if err != nil || durable.ExitCode != tt.code || !durable.Finished.Equal(st.Finished) {
				t.Errorf("exit record: %+v, %v", durable, err)
			}
			if got := ev.actions(); !slices.Equal(got, []string{"start", "die", "exited"}) {
				t.Errorf("events: %v", got)
			}
			entries, err := client.ReadJournal(b.boot.RunDir, 0)
			if err != nil || len(entries) != 3 || entries[1].Attributes["name"] != "box" {
				t.Errorf("journal: %+v, %v", entries, err)
			}
		})
	}
}

func TestProgramThatCannotRunHasItsExitCode(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"not in PATH", []string{"nosuch"}, 127, "executable file not found"},
		{"no such file", []string{"/bin/nosuch"}, 127, "no such file or directory"},
		{"not executable", []string{"/etc/text"}, 126, "permission denied"},
		{"a directory", []string{"/etc"}, 126, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBoxArgs(t, tt.args...)
			if err := os.WriteFile(filepath.Join(b.dir, "rootfs/etc/text"), []byte("text"), 0o644); err != nil {
				t.Fatal(err)
			}
			s := b.spawn()
			c := b.attach(s, proto.Attach{Stdout: true, Stderr: true})
			_, err := s.Start(ctx(t))
			var perr *proto.Error
			if !errors.As(err, &perr) || perr.Kind != proto.KindRuntime || perr.ExitCode != tt.code || !strings.Contains(perr.Message, tt.says) {
				t.Fatalf("start: %v (%+v)", err, perr)
			}
			if !strings.HasPrefix(err.Error(), "OCI runtime failed: ") {
				t.Errorf("message: %v", err)
			}
			if out, errs := c.all(); out != "" || errs != "" {
				t.Errorf("the runtime's messages reached the client: %q %q", out, errs)
			}
			st := b.ended(s)
			if st.Status != proto.StatusExited || st.ExitCode != tt.code || st.Error == "" {
				t.Errorf("state: %+v", st)
			}
		})
	}
}

func TestUnknownRuntimeIsNamed(t *testing.T) {
	b := newBox(t, "true")
	b.boot.Runtime.Path = "no-such-runtime"
	_, err := client.Spawn(ctx(t), client.Options{Binary: shimBinary, Bootstrap: b.boot})
	if err == nil || !strings.Contains(err.Error(), "no-such-runtime") {
		t.Fatalf("spawn: %v", err)
	}
}

func TestOnFailureRestartsItsNumberOfTimesWithBackoff(t *testing.T) {
	b := newBox(t, "exit 7")
	b.boot.Restart = proto.RestartPolicy{Name: "on-failure", MaxRetries: 3}
	s, ev := b.started()
	st := b.ended(s)
	if st.RestartCount != 3 || st.ExitCode != 7 {
		t.Errorf("state: %+v", st)
	}
	want := []string{"start", "die", "start", "die", "start", "die", "start", "die", "exited"}
	if got := ev.actions(); !slices.Equal(got, want) {
		t.Fatalf("events: %v", got)
	}
	var died time.Time
	gap := 100 * time.Millisecond
	for _, e := range ev.list {
		switch {
		case e.Action == proto.ActionDie:
			died = e.Time
		case e.Action == proto.ActionStart && !died.IsZero():
			if d := e.Time.Sub(died); d < gap || d > gap+5*time.Second {
				t.Errorf("restarted after %v, want a little more than %v", d, gap)
			}
			gap *= 2
		}
	}
}

func TestRestartGoesOnWithoutADaemon(t *testing.T) {
	b := newBox(t, "echo run; test -e /etc/done || { touch /etc/done; exit 1; }; sleep 100")
	b.boot.Restart = proto.RestartPolicy{Name: "always"}
	s, ev := b.started()
	ev.action(proto.ActionStart)
	s.Close()
	<-s.Done()
	again := b.dial()
	// A later subscriber gets every event once.
	all := b.subscribe(again, 0)
	e := all.wait("the second start", func(e proto.Event) bool { return e.Action == proto.ActionStart && e.Seq > 1 })
	if e.Seq != 3 || !slices.Equal(all.actions(), []string{"start", "die", "start"}) {
		t.Errorf("events: %v", all.actions())
	}
	if st, err := again.State(ctx(t)); err != nil || st.RestartCount != 1 || st.Status != proto.StatusRunning {
		t.Errorf("state: %+v, %v", st, err)
	}
	if _, err := again.Stop(ctx(t), proto.Stop{Timeout: 0}); err != nil {
		t.Fatal(err)
	}
	if st := b.ended(again); st.ExitCode != 137 || !st.Manual {
		t.Errorf("state: %+v", st)
	}
}

func TestStopCancelsARestartThatWaits(t *testing.T) {
	b := newBox(t, "exit 1")
	b.boot.Restart = proto.RestartPolicy{Name: "always"}
	s, ev := b.started()
	// The fourth backoff is 800 ms, long enough to act during it.
	ev.wait("fourth death", func(e proto.Event) bool { return e.Action == proto.ActionDie && e.State.RestartCount == 4 })
	st, err := s.Stop(ctx(t), proto.Stop{Default: true})
	if err != nil || st.Status != proto.StatusExited || !st.NextRestart.IsZero() {
		t.Fatalf("stop: %+v, %v", st, err)
	}
	b.ended(s)
	if got := ev.actions(); len(got) != 9 || got[8] != "exited" {
		t.Errorf("events: %v", got)
	}
}

func TestStopSignalsThenKills(t *testing.T) {
	t.Run("obeys the signal", func(t *testing.T) {
		b := newBox(t, "trap 'exit 4' TERM; echo ready; while :; do sleep 0.01; done")
		b.boot.Restart = proto.RestartPolicy{Name: "always"}
		s := b.spawn()
		c := b.attach(s, proto.Attach{Stdout: true, Raw: true})
		if _, err := s.Start(ctx(t)); err != nil {
			t.Fatal(err)
		}
		c.until("ready")
		st, err := s.Stop(ctx(t), proto.Stop{Default: true})
		if err != nil || st.ExitCode != 4 || st.Status != proto.StatusExited || st.RestartCount != 0 {
			t.Fatalf("stop: %+v, %v", st, err)
		}
	})
	t.Run("does not", func(t *testing.T) {
		b := newBox(t, "trap '' TERM; echo ready; sleep 100")
		s := b.spawn()
		c := b.attach(s, proto.Attach{Stdout: true, Raw: true})
		if _, err := s.Start(ctx(t)); err != nil {
			t.Fatal(err)
		}
		c.until("ready")
		told := b.subscribe(s, 0)
		began := time.Now()
		st, err := s.Stop(ctx(t), proto.Stop{Timeout: 1})
		if err != nil || st.ExitCode != 137 {
			t.Fatalf("stop: %+v, %v", st, err)
		}
		if kill := told.action(proto.ActionKill); kill.Attributes["signal"] != "9" {
			t.Errorf("events of the kill: %v", kill.Attributes)
		}
		if d := time.Since(began); d < time.Second || d > 10*time.Second {
			t.Errorf("stop took %v", d)
		}
	})
	t.Run("is paused", func(t *testing.T) {
		b := newBox(t, "sleep 100")
		s, _ := b.started()
		if st, err := s.Pause(ctx(t)); err != nil || st.Status != proto.StatusPaused {
			t.Fatalf("pause: %+v, %v", st, err)
		}
		if _, err := s.Pause(ctx(t)); !errdefs.IsConflict(err) {
			t.Errorf("second pause: %v", err)
		}
		if err := s.Kill(ctx(t), proto.Kill{Signal: 9, Manual: true}); err != nil {
			t.Fatal(err)
		}
		if st := b.ended(s); st.ExitCode != 137 {
			t.Errorf("state: %+v", st)
		}
	})
	t.Run("goes on when the caller goes", func(t *testing.T) {
		b := newBox(t, "trap '' TERM; sleep 100")
		s, ev := b.started()
		other := b.dial()
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			other.Stop(ctx(t), proto.Stop{Timeout: 1})
		}()
		ev.wait("mark of the stop", func(e proto.Event) bool { return e.State.Manual })
		other.Close()
		<-asked
		if st := b.ended(s); st.ExitCode != 137 {
			t.Errorf("state: %+v", st)
		}
	})
}

func TestResumeThenRunsOn(t *testing.T) {
	b := newBox(t, "cat")
	b.boot.OpenStdin = true
	s := b.spawn()
	c := b.attach(s, proto.Attach{Stdin: true, Stdout: true, Raw: true})
	if _, err := s.Start(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pause(ctx(t)); err != nil {
		t.Fatal(err)
	}
	c.write("while paused\n")
	if st, err := s.Resume(ctx(t)); err != nil || st.Status != proto.StatusRunning {
		t.Fatalf("resume: %+v, %v", st, err)
	}
	c.until("while paused\n")
}

func TestAutoRemoveIsCarriedOutWithoutADaemon(t *testing.T) {
	b := newBox(t, "echo hello; sleep 0.3")
	b.boot.AutoRemove = true
	s, ev := b.started()
	ev.action(proto.ActionStart)
	pid := s.Hello().Pid
	s.Close()
	if !exited(pid, b.pids[pid]) {
		t.Fatal("the shim did not exit")
	}
	st, err := client.ReadState(b.boot.RunDir)
	if err != nil || st.Status != proto.StatusRemoved {
		t.Errorf("state: %+v, %v", st, err)
	}
	if durable, err := client.ReadExit(b.boot.DataDir); err != nil || durable.Status != proto.StatusRemoved {
		t.Errorf("exit record: %+v, %v", durable, err)
	}
	entries, err := client.ReadJournal(b.boot.RunDir, 1)
	if err != nil || len(entries) != 3 || entries[0].Action != "die" || entries[1].Action != "exited" || entries[2].Action != "destroy" {
		t.Errorf("journal: %+v, %v", entries, err)
	}
	if _, err := os.Stat(b.boot.Log.Path); !os.IsNotExist(err) {
		t.Errorf("log: %v", err)
	}
	if _, err := client.Dial(ctx(t), b.boot.RunDir, "test"); !errdefs.IsNotFound(err) {
		t.Errorf("dial: %v", err)
	}
}

func TestAutoRemoveIsTheDaemonsWhenItIsThere(t *testing.T) {
	b := newBox(t, "true")
	b.boot.AutoRemove = true
	s, ev := b.started()
	if st := b.ended(s); st.Status != proto.StatusExited {
		t.Errorf("state: %+v", st)
	}
	if got := ev.actions(); slices.Contains(got, "destroy") {
		t.Errorf("events: %v", got)
	}
	if _, err := os.Stat(b.boot.Log.Path); err != nil {
		t.Error(err)
	}
}

// The next daemon may have looked for the shim, and undone the start, before the shim was there.
// Nobody would ever find it.
func TestShimWhoseDaemonDiesBeforeTheStartEnds(t *testing.T) {
	b := newBox(t, "sleep 1000")
	s := b.spawn()
	pid := s.Hello().Pid
	s.Close()
	kit.Eventually(t, "the shim has ended", func() bool { return !kit.Alive(pid) })
}

func TestShutdownOnlyBeforeStart(t *testing.T) {
	b := newBox(t, "sleep 100")
	s := b.spawn()
	if err := s.Shutdown(ctx(t)); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	b2 := newBox(t, "sleep 100")
	s2, _ := b2.started()
	if err := s2.Shutdown(ctx(t)); !errdefs.IsConflict(err) {
		t.Errorf("shutdown while the container runs: %v", err)
	}
}

func TestTermDoesNotEndTheShim(t *testing.T) {
	b := newBox(t, "sleep 100")
	s, _ := b.started()
	p, err := os.FindProcess(s.Hello().Pid)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := p.Signal(os.Signal(sigterm)); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := s.State(ctx(t)); err != nil || st.Status != proto.StatusRunning {
		t.Errorf("state: %+v, %v", st, err)
	}
}
