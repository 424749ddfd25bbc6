// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"holdfast/internal/shim/proto"
)

func TestExecExitCodeAndStreams(t *testing.T) {
	b := newBox(t, "sleep 100")
	s, ev := b.started()
	if err := s.ExecCreate(ctx(t), proto.ExecCreate{Exec: "e1", Stdin: true, Stdout: true, Stderr: true,
		Process: raw(t, process("sh", "-c", "cat; echo err >&2; exit 42")), Info: raw(t, map[string]string{"k": "v"})}); err != nil {
		t.Fatal(err)
	}
	c, theirs := clientPair(t)
	st, err := s.ExecStart(ctx(t), proto.ExecStart{Exec: "e1", Pending: []byte("in")}, theirs)
	theirs.Close()
	if err != nil || !st.Running || st.Pid == 0 {
		t.Fatalf("start: %+v, %v", st, err)
	}
	c.write("put\n")
	c.conn.CloseWrite()
	if out, errs := c.all(); out != "input\n" || errs != "err\n" {
		t.Errorf("streams: %q %q", out, errs)
	}
	// The stream ends only after the exit code is known.
	state, err := s.State(ctx(t))
	if err != nil || len(state.Execs) != 1 {
		t.Fatalf("state: %+v, %v", state, err)
	}
	if x := state.Execs[0]; x.Running || x.ExitCode != 42 || string(x.Info) != `{"k":"v"}` {
		t.Errorf("exec: %+v", x)
	}
	e := ev.action(proto.ActionExecDie)
	if e.Attributes["execID"] != "e1" || e.Attributes["exitCode"] != "42" {
		t.Errorf("event: %+v", e)
	}
	if _, err := s.ExecStart(ctx(t), proto.ExecStart{Exec: "e1"}, nil); !errdefs.IsConflict(err) {
		t.Errorf("second start: %v", err)
	}
	if _, err := s.ExecStart(ctx(t), proto.ExecStart{Exec: "e2"}, nil); !errdefs.IsNotFound(err) {
		t.Errorf("unknown exec: %v", err)
	}
	if err := s.ExecCreate(ctx(t), proto.ExecCreate{Exec: "../e", Process: raw(t, process("true"))}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a name that climbs: %v", err)
	}
}

func TestExecWithTerminalIsResized(t *testing.T) {
	b := newBox(t, "sleep 100")
	s, _ := b.started()
	if err := s.ExecCreate(ctx(t), proto.ExecCreate{Exec: "tty", Tty: true, Stdin: true, Stdout: true,
		Process: raw(t, process("sh", "-c", "stty size; read x; stty size; exit 3"))}); err != nil {
		t.Fatal(err)
	}
	c, theirs := clientPair(t)
	_, err := s.ExecStart(ctx(t), proto.ExecStart{Exec: "tty", ConsoleSize: [2]uint{20, 60}}, theirs)
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	c.until("20 60\r\n")
	if err := s.ExecResize(ctx(t), "tty", 21, 61); err != nil {
		t.Fatal(err)
	}
	c.write("go\n")
	c.until("21 61\r\n")
	if _, err := io.ReadAll(c.conn); err != nil {
		t.Fatal(err)
	}
	state, err := s.State(ctx(t))
	if err != nil || state.Execs[0].ExitCode != 3 {
		t.Errorf("state: %+v, %v", state, err)
	}
}

func TestExecThatCannotRunTellsItsClient(t *testing.T) {
	b := newBox(t, "sleep 100")
	s, _ := b.started()
	for _, tt := range []struct {
		id, program, says string
		code              int
	}{
		{"e1", "nosuch", "executable file not found", 127},
		{"e2", "/etc", "", 126},
	} {
		create := proto.ExecCreate{Exec: tt.id, Stdout: true, Stderr: true, Process: raw(t, process(tt.program))}
		if err := s.ExecCreate(ctx(t), create); err != nil {
			t.Fatal(err)
		}
		c, theirs := clientPair(t)
		st, err := s.ExecStart(ctx(t), proto.ExecStart{Exec: tt.id}, theirs)
		theirs.Close()
		if err != nil || st.Running || st.ExitCode != tt.code {
			t.Errorf("%s: %+v, %v", tt.program, st, err)
		}
		if out, _ := c.all(); !strings.HasPrefix(out, "OCI runtime exec failed: ") || !strings.Contains(out, tt.says) || strings.Count(out, "exec failed") > 2 {
			t.Errorf("%s: the client got %q", tt.program, out)
		}
		create.Exec += "-detached"
		if err := s.ExecCreate(ctx(t), create); err != nil {
			t.Fatal(err)
		}
		var perr *proto.Error
		if _, err := s.ExecStart(ctx(t), proto.ExecStart{Exec: create.Exec}, nil); !errors.As(err, &perr) || perr.ExitCode != tt.code {
			t.Errorf("%s detached: %v", tt.program, err)
		}
	}
}

// The client's connection is upgraded before the shim is asked, so a client whose
// session does not start must find the reason in its stream. An empty one would look
// like a command without output.
func TestExecThatIsRefusedTellsItsClient(t *testing.T) {
	b := newBox(t, "sleep 100")
	s, _ := b.started()
	for id, tty := range map[string]bool{"pipes": false, "terminal": true} {
		if err := s.ExecCreate(ctx(t), proto.ExecCreate{Exec: id, Tty: tty, Stdout: true, Process: raw(t, process("sh", "-c", "sleep 100"))}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.ExecStart(ctx(t), proto.ExecStart{Exec: id}, nil); err != nil {
			t.Fatal(err)
		}
		for _, reframe := range []bool{false, true} {
			c, theirs := clientPair(t)
			if _, err := s.ExecStart(ctx(t), proto.ExecStart{Exec: id, Reframe: reframe}, theirs); !errdefs.IsConflict(err) {
				t.Errorf("%s: the second start: %v", id, err)
			}
			theirs.Close()
			var out string
			if tty != reframe {
				b, err := io.ReadAll(c.conn)
				if err != nil {
					t.Error(err)
				}
				out = string(b)
			} else {
				out, _ = c.all()
			}
			if want := "exec " + id + " was already started\r\n"; out != want {
				t.Errorf("%s, reframe %v: the second client got %q, want %q", id, reframe, out, want)
			}
		}
	}
	c, theirs := clientPair(t)
	if _, err := s.ExecStart(ctx(t), proto.ExecStart{Exec: "none"}, theirs); !errdefs.IsNotFound(err) {
		t.Errorf("a session that there is not: %v", err)
	}
	theirs.Close()
	if out, _ := c.all(); out != "no such exec: none\r\n" {
		t.Errorf("the client got %q", out)
	}
}

func TestManyExecsAtOnceEachWithItsOwnCode(t *testing.T) {
	b := newBox(t, "sleep 100")
	s, ev := b.started()
	const n = 12
	for i := range n {
		if err := s.ExecCreate(ctx(t), proto.ExecCreate{Exec: itoa(i), Process: raw(t, process("sh", "-c", "exit "+itoa(i)))}); err != nil {
			t.Fatal(err)
		}
	}
	errs := make(chan error, n)
	for i := range n {
		go func() {
			_, err := s.ExecStart(ctx(t), proto.ExecStart{Exec: itoa(i)}, nil)
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for i := range n {
		ev.wait("end of exec "+itoa(i), func(e proto.Event) bool {
			return e.Action == proto.ActionExecDie && e.Attributes["execID"] == itoa(i) && e.Attributes["exitCode"] == itoa(i)
		})
	}
	state, err := s.State(ctx(t))
	if err != nil || slices.ContainsFunc(state.Execs, func(x proto.ExecState) bool { return x.Running }) {
		t.Errorf("state: %+v, %v", state.Execs, err)
	}
}

func TestExecEndsWithItsProcessAndNotWithWhatItLeftBehind(t *testing.T) {
	b := newBox(t, "sleep 100")
	s, _ := b.started()
	if err := s.ExecCreate(ctx(t), proto.ExecCreate{Exec: "e1", Stdout: true, Process: raw(t, process("sh", "-c", "sleep 50 & echo hi"))}); err != nil {
		t.Fatal(err)
	}
	c, theirs := clientPair(t)
	_, err := s.ExecStart(ctx(t), proto.ExecStart{Exec: "e1"}, theirs)
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if out, _ := c.all(); out != "hi\n" {
		t.Errorf("stdout: %q", out)
	}
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("took %v", d)
	}
}

func TestHealthGoesThroughItsStatuses(t *testing.T) {
	b := newBox(t, "sleep 100")
	b.boot.Health = &proto.Health{Process: raw(t, process("sh", "-c", "echo probe; cat /tmp/ok")),
		Interval: 50 * time.Millisecond, Timeout: 5 * time.Second, Retries: 2}
	s, ev := b.started()
	if st, err := s.State(ctx(t)); err != nil || st.Health == nil || st.Health.Status == "healthy" {
		t.Errorf("at the start: %+v, %v", st.Health, err)
	}
	health := func(status string) proto.Event {
		return ev.wait(status, func(e proto.Event) bool {
			return e.Action == proto.ActionHealth && e.Attributes["health"] == status
		})
	}
	e := health("unhealthy")
	if h := e.State.Health; h.FailingStreak != 2 || h.Log[0].ExitCode != 1 || !strings.HasPrefix(h.Log[0].Output, "probe\n") {
		t.Errorf("unhealthy: %+v", h)
	}
	touch(b, "rootfs/tmp/ok")
	if e := health("healthy"); e.State.Health.FailingStreak != 0 {
		t.Errorf("healthy: %+v", e.State.Health)
	}
	if _, err := s.Stop(ctx(t), proto.Stop{}); err != nil {
		t.Fatal(err)
	}
	b.ended(s)
}

func TestHealthCheckThatHangsIsKilled(t *testing.T) {
	b := newBox(t, "sleep 100")
	b.boot.Health = &proto.Health{Process: raw(t, process("sh", "-c", "echo slow; sleep 60")),
		Interval: 20 * time.Millisecond, Timeout: 300 * time.Millisecond, Retries: 1}
	_, ev := b.started()
	e := ev.wait("unhealthy", func(e proto.Event) bool { return e.Action == proto.ActionHealth })
	res := e.State.Health.Log[0]
	if res.ExitCode != -1 || !strings.HasPrefix(res.Output, "Health check exceeded timeout (300ms)") {
		t.Errorf("result: %+v", res)
	}
}
