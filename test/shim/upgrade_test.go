// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/client"
	"holdfast/internal/shim/proto"
	"holdfast/test/kit"
)

func upgrade(t *testing.T, s *client.Shim, binary, release string) {
	t.Helper()
	reply, err := s.Upgrade(ctx(t), binary)
	if err != nil {
		t.Fatal(err)
	}
	if reply.Release != release || reply.Pid != s.Hello().Pid {
		t.Fatalf("%+v", reply)
	}
}

// All kinds of state that a shim holds, over twenty upgrades under load.
func TestUpgradeInPlaceIsNoticedByNobody(t *testing.T) {
	const lines, typed = 1_000_000, 200
	next := kit.Shim(t, "next")
	b := newBox(t, writer(lines)+"; read last; echo last is $last; exit 7")
	b.boot.OpenStdin = true
	b.boot.Health = &proto.Health{Process: raw(t, process("true")), Interval: 50 * time.Millisecond, Timeout: 10 * time.Second, Retries: 3}
	s := b.spawn()
	ev := b.subscribe(s, 0)
	pid := s.Hello().Pid

	// One client reads everything at once, and one is behind all the time.
	all := make(chan string, 1)
	fast := b.attach(s, proto.Attach{Stdout: true})
	go func() { out, _ := fast.all(); all <- out }()
	slow := b.attach(s, proto.Attach{Stdin: true, Stdout: true, Raw: true})
	began, err := s.Start(ctx(t))
	if err != nil {
		t.Fatal(err)
	}

	// One client follows the log file.
	follow, followTheirs := clientPair(t)
	logFile, err := os.Open(b.boot.Log.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Follow(ctx(t), proto.Follow{Stdout: true, Raw: true}, followTheirs, logFile); err != nil {
		t.Fatal(err)
	}
	followTheirs.Close()
	logFile.Close()
	followed := make(chan []byte, 1)
	go func() { p, _ := io.ReadAll(follow.conn); followed <- p }()

	// An exec session that echoes its input.
	if err := s.ExecCreate(ctx(t), proto.ExecCreate{Exec: "echo", Process: raw(t, process("sh", "-c", "while read x; do echo got $x; done; exit 5")), Stdin: true, Stdout: true}); err != nil {
		t.Fatal(err)
	}
	echo, theirs := clientPair(t)
	if _, err := s.ExecStart(ctx(t), proto.ExecStart{Exec: "echo"}, theirs); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	// Some output is sent before, during and after each upgrade.
	for _, c := range []*terminal{slow, fast, follow} {
		c.conn.SetDeadline(time.Now().Add(5 * time.Minute))
	}
	const upgrades, bite = 20, 3 << 20
	var slowGot []byte
	pace := make(chan struct{}, typed)
	go func() {
		for i := range typed {
			<-pace
			echo.write(strconv.Itoa(i) + "\n")
		}
		echo.conn.CloseWrite()
	}()
	echoed := make(chan string, 1)
	go func() { out, _ := echo.all(); echoed <- out }()

	for i := range upgrades {
		for range typed / upgrades {
			pace <- struct{}{}
		}
		binary, release := next, "next"
		if i%2 == 1 {
			binary, release = shimBinary, "dev"
		}
		upgrade(t, s, binary, release)
		bitten := make([]byte, bite)
		if _, err := io.ReadFull(slow.conn, bitten); err != nil {
			t.Fatalf("the slow client after upgrade %d: %v", i, err)
		}
		slowGot = append(slowGot, bitten...)
		if _, err := s.State(ctx(t)); err != nil {
			t.Fatalf("the connection after upgrade %d: %v", i, err)
		}
	}
	if fresh := b.dial(); fresh.Hello().Release != "dev" || fresh.Hello().Pid != pid {
		t.Errorf("%+v", fresh.Hello())
	}
	if got := <-echoed; got != numbers("got ", typed) {
		t.Errorf("the exec's client got %d bytes: %.200q", len(got), got)
	}
	ev.wait("exec_die", func(e proto.Event) bool { return e.Action == proto.ActionExecDie && e.Attributes["exitCode"] == "5" })
	// First the output that the slow client has missed, and then its own line.
	slowRest := make(chan []byte, 1)
	go func() { p, _ := io.ReadAll(slow.conn); slowRest <- p }()
	slow.write("word\n")
	end := b.ended(s)
	if end.ExitCode != 7 || end.Pid != 0 || !end.Started.Equal(began.Started) || end.RestartCount != 0 || end.Error != "" {
		t.Errorf("was %+v\nis %+v", began, end)
	}
	if end.Health == nil || end.Health.Status != "healthy" {
		t.Errorf("health: %+v", end.Health)
	}
	last := "last is word\n"
	for name, got := range map[string]string{"fast": <-all, "slow": string(append(slowGot, <-slowRest...)), "following": string(<-followed)} {
		if !strings.HasSuffix(got, last) || bytes.Count([]byte(got), []byte("\n")) != lines+1 || len(got) != 100*lines+len(last) {
			t.Errorf("the %s client got %d bytes, ending %q", name, len(got), got[max(0, len(got)-120):])
			prev := 0
			for line := range strings.Lines(got) {
				n, err := strconv.Atoi(strings.TrimSpace(line))
				if err == nil && n != prev+1 {
					t.Errorf("the %s client got line %[3]d after line %[2]d", name, prev, n)
				}
				prev = n
			}
		}
	}
	log, err := os.ReadFile(b.boot.Log.Path)
	if err != nil {
		t.Fatal(err)
	}
	cut := bytes.LastIndexByte(log[:len(log)-1], '\n') + 1
	if !bytes.Contains(log[cut:], []byte("last is word")) {
		t.Errorf("the log ends with %q", log[cut:])
	}
	if err := os.Truncate(b.boot.Log.Path, int64(cut)); err != nil {
		t.Fatal(err)
	}
	b.numbered(lines)
	var seqs []uint64
	for _, e := range ev.list {
		if e.Seq > 0 {
			seqs = append(seqs, e.Seq)
		}
	}
	for i, seq := range seqs {
		if seq != uint64(i+1) {
			t.Fatalf("events were lost or doubled: %v", seqs)
		}
	}
	if got := ev.actions(); slices.Index(got, "start") != 0 || got[len(got)-1] != "exited" {
		t.Errorf("events: %v", got)
	}
}

func numbers(before string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%s%d\n", before, i)
	}
	return b.String()
}

func TestUpgradeThatCantBeLeavesTheOldShimGoing(t *testing.T) {
	dir := t.TempDir()
	script := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	b := newBox(t, "echo up; sleep 1000")
	s, _ := b.started()
	pid := s.Hello().Pid
	for _, c := range []struct{ name, binary, says string }{
		{"no path", "holdfast-shim", "not absolute"},
		{"not there", "/nonexistent/shim", "can't be run"},
		{"not executable", script("text", "text\n"), "can't be run"},
		{"not a shim", "/bin/true", "is no shim"},
		{"another format", script("old", "#!/bin/sh\necho holdfast-shim 0.0\nexit 1\n"), "does not take over"},
		{"gone in between", script("gone", "#!/bin/sh\necho holdfast-shim 9; rm $0\n"), "no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := s.Upgrade(ctx(t), c.binary); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v", err)
			}
			if st, err := s.State(ctx(t)); err != nil || st.Status != proto.StatusRunning {
				t.Errorf("%+v %v", st, err)
			}
		})
	}
	if fresh := b.dial(); fresh.Hello().Pid != pid {
		t.Errorf("%+v", fresh.Hello())
	}
	if err := s.ExecCreate(ctx(t), proto.ExecCreate{Exec: "x", Process: raw(t, process("true"))}); err != nil {
		t.Error(err)
	}
	if _, err := s.Stop(ctx(t), proto.Stop{Signal: 9}); err != nil {
		t.Error(err)
	}
	b.ended(s)
}

// If the new program can't take the state over, the old program is executed
// again.
func TestUpgradeIsTakenBackByTheOldBinary(t *testing.T) {
	b := newBox(t, "echo up; sleep 1000")
	runtime := filepath.Join(b.dir, "runtime")
	real, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, runtime); err != nil {
		t.Fatal(err)
	}
	b.boot.Runtime.Path = runtime
	s, _ := b.started()
	if err := os.Remove(runtime); err != nil {
		t.Fatal(err)
	}
	// A program without its runtime does not take over. The way back does not
	// check for the runtime.
	if _, err := s.Upgrade(ctx(t), kit.Shim(t, "next")); err == nil || !strings.Contains(err.Error(), "did not take over") {
		t.Errorf("%v", err)
	}
	if err := os.Symlink(real, runtime); err != nil {
		t.Fatal(err)
	}
	if fresh := b.dial(); fresh.Hello().Release != "dev" || fresh.Hello().Pid != s.Hello().Pid {
		t.Errorf("%+v", fresh.Hello())
	}
	if _, err := s.Stop(ctx(t), proto.Stop{Signal: 9}); err != nil {
		t.Error(err)
	}
	b.ended(s)
}

func TestStopAndTerminalGoOnOverAnUpgrade(t *testing.T) {
	b := newBox(t, "trap 'echo asked' TERM; stty size; while read x; do echo \"<$x>\"; done; while :; do sleep 0.05; done")
	b.boot.Terminal, b.boot.OpenStdin, b.boot.ConsoleSize = true, true, [2]uint{20, 70}
	b.spec["process"].(map[string]any)["terminal"] = true
	s, ev := b.started()
	c := b.attach(s, proto.Attach{Stdin: true, Stdout: true, Raw: true, DetachKeys: []byte{16, 17}})
	c.write("before\n")
	c.until("<before>")
	c.write("\x10") // half of the detach keys
	for range 3 {
		upgrade(t, s, shimBinary, "dev")
	}
	c.write("after\n")
	c.until("<\x10after>")
	if err := s.Resize(ctx(t), 30, 90); err != nil {
		t.Error(err)
	}
	c.write("\x10")
	upgrade(t, s, shimBinary, "dev")
	c.write("\x11")
	if rest, err := io.ReadAll(c.conn); err != nil {
		t.Errorf("%q %v", rest, err)
	}
	ev.action(proto.ActionDetach)

	stopped := make(chan error, 1)
	go func() { _, err := s.Stop(ctx(t), proto.Stop{Timeout: 1}); stopped <- err }()
	ev.wait("manual", func(e proto.Event) bool { return e.State.Manual })
	upgrade(t, s, shimBinary, "dev")
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if st := b.ended(s); st.ExitCode != 137 {
		t.Errorf("%+v", st)
	}
	log := b.logLines("stdout")
	if strings.Count(log, "asked") != 1 || !strings.Contains(log, "20 70") {
		t.Errorf("log: %q", log)
	}
}

func TestRestartThatWaitsGoesOnOverAnUpgrade(t *testing.T) {
	b := newBox(t, "exit 3")
	b.boot.Restart = proto.RestartPolicy{Name: "on-failure", MaxRetries: 4}
	s, ev := b.started()
	ev.wait("third restart", func(e proto.Event) bool { return e.State.RestartCount == 3 && e.State.Status == proto.StatusRestarting })
	upgrade(t, s, shimBinary, "dev")
	if st := b.ended(s); st.RestartCount != 4 || st.ExitCode != 3 {
		t.Errorf("%+v", st)
	}
	// 100, 200, 400, 800 ms.
	var died time.Time
	for _, e := range ev.list {
		if e.Action == proto.ActionDie {
			died = e.Time
		}
		if e.Action == proto.ActionStart && e.State.RestartCount == 4 && e.Time.Sub(died) < 0 {
			t.Errorf("restarted after %v", e.Time.Sub(died))
		}
	}
}

func TestSignalsOfTheContainerAreItsOwnAfterAnUpgrade(t *testing.T) {
	b := newBox(t, "sleep 1000")
	s, _ := b.started()
	upgrade(t, s, shimBinary, "dev")
	if err := unix.Kill(s.Hello().Pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := s.ExecCreate(ctx(t), proto.ExecCreate{Exec: "x", Process: raw(t, process("cat", "/proc/self/status")), Stdout: true}); err != nil {
		t.Fatal(err)
	}
	c, theirs := clientPair(t)
	if _, err := s.ExecStart(ctx(t), proto.ExecStart{Exec: "x"}, theirs); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	out, _ := c.all()
	for _, want := range []string{"SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"} {
		if !strings.Contains(out, want) {
			t.Errorf("want %s in %q", want, out)
		}
	}
	if _, err := s.Stop(ctx(t), proto.Stop{Signal: 9}); err != nil {
		t.Error(err)
	}
	b.ended(s)
}
