// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/client"
	"holdfast/internal/shim/proto"
	"holdfast/test/kit"
)

// keep opens the descriptors that a daemon holds of a running container.
func (b *box) keep(s *client.Shim) *client.Kept {
	b.t.Helper()
	st, err := s.State(ctx(b.t))
	if err != nil {
		b.t.Fatal(err)
	}
	k := &client.Kept{}
	if st.Pid != 0 {
		fd, err := unix.PidfdOpen(st.Pid, 0)
		if err != nil {
			b.t.Fatal(err)
		}
		k.Pidfd = os.NewFile(uintptr(fd), "pidfd")
	}
	if b.boot.Terminal {
		if k.Terminal, err = s.Terminal(ctx(b.t)); err != nil {
			b.t.Fatal(err)
		}
	} else if b.boot.OpenStdin && !b.boot.StdinOnce {
		if k.Stdin, err = os.OpenFile(filepath.Join(b.boot.RunDir, "stdin"), os.O_WRONLY|unix.O_NONBLOCK, 0); err != nil {
			b.t.Fatal(err)
		}
	}
	if !b.boot.Terminal {
		// Output that the container writes before it ends without a shim must
		// not be lost.
		for _, name := range []string{"stdout", "stderr"} {
			f, err := os.OpenFile(filepath.Join(b.boot.RunDir, name), os.O_RDONLY|unix.O_NONBLOCK, 0)
			if err != nil {
				b.t.Fatal(err)
			}
			b.t.Cleanup(func() { f.Close() })
		}
	}
	b.t.Cleanup(func() { closeKept(k) })
	return k
}

func closeKept(k *client.Kept) {
	for _, f := range []*os.File{k.Pidfd, k.Terminal, k.Stdin} {
		if f != nil {
			f.Close()
		}
	}
}

// killShim kills a shim and waits until it has exited.
func (b *box) killShim(s *client.Shim) {
	b.t.Helper()
	pid := s.Hello().Pid
	start := b.pids[pid]
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		b.t.Fatal(err)
	}
	if !exited(pid, start) {
		b.t.Fatal("the shim did not exit")
	}
	<-s.Done()
}

// adopt starts a shim in place of a killed one.
func (b *box) adopt(k *client.Kept) *client.Shim {
	b.t.Helper()
	s, err := b.tryAdopt(k)
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *box) tryAdopt(k *client.Kept) (*client.Shim, error) {
	b.t.Helper()
	boot, err := client.ReadBootstrap(b.boot.RunDir)
	if err != nil {
		return nil, err
	}
	boot.Ports = b.boot.Ports
	if k == nil {
		k = &client.Kept{}
	}
	s, err := client.Spawn(ctx(b.t), client.Options{Binary: shimBinary, Bootstrap: boot, Ports: b.ports, Release: "test", Adopt: k})
	if err != nil {
		return nil, err
	}
	b.pids[s.Hello().Pid] = startTime(s.Hello().Pid)
	b.shims = append(b.shims, s)
	return s, nil
}

// numbered checks that stdout's log has lines that begin with 1 to n, each once
// and in order, and returns the other lines.
func (b *box) numbered(n int) (others []string) {
	b.t.Helper()
	var files []string
	for i := 1; ; i++ {
		path := b.boot.Log.Path + "." + strconv.Itoa(i)
		if _, err := os.Stat(path); err != nil {
			break
		}
		files = append(files, path)
	}
	slices.Reverse(files) // the oldest first
	next := 1
	for _, path := range append(files, b.boot.Log.Path) {
		data, err := os.ReadFile(path)
		if err != nil {
			b.t.Fatal(err)
		}
		for line := range bytes.Lines(data) {
			if bytes.Contains(line, []byte(`","stream":"stderr",`)) {
				others = append(others, string(line))
				continue
			}
			want := `{"log":"` + strconv.Itoa(next)
			if !bytes.HasPrefix(line, []byte(want)) || line[len(want)] >= '0' && line[len(want)] <= '9' || !bytes.HasSuffix(line, []byte("\"}\n")) {
				b.t.Fatalf("%s: after line %d comes %.80q", filepath.Base(path), next-1, line)
			}
			next++
		}
	}
	if next-1 != n {
		b.t.Errorf("the log has %d lines, but %d were written", next-1, n)
	}
	return others
}

// writer is a command that writes n numbered lines of 100 bytes.
func writer(n int) string {
	return fmt.Sprintf(`busybox awk 'BEGIN { for (i = 1; i <= %d; i++) printf "%%-99d\n", i }'`, n)
}

// The log is complete with 100 MB of lines and many kills of the shim,
// including kills between a read and the write that follows it.
func TestLogHasEveryLineOnceAlthoughItsShimIsKilledAgainAndAgain(t *testing.T) {
	const lines = 1_000_000 // 100 MB
	b := newBox(t, writer(lines)+" && echo done >&2; exit 7")
	s, _ := b.started()
	st, _ := s.State(ctx(t))
	kept := b.keep(s)
	kills := 0
	// Kill again after some more of the log is written. The moment within the
	// shim's loop is random. The log becomes more than 160 MiB; the last part is left to
	// one shim, because a shim that exits by itself can't be killed.
	for grown := int64(8 << 20); grown <= 128<<20 && kit.WaitGrown(t, b.boot.Log.Path, grown, int(kept.Pidfd.Fd())); grown += 8 << 20 {
		b.killShim(s)
		kills++
		s = b.adopt(kept)
		if now := s.Hello().State; now.Status == proto.StatusRunning && (now.Pid != st.Pid || !now.Started.Equal(st.Started) || now.RestartCount != 0) {
			t.Fatalf("was %+v\nis %+v", st, now)
		}
	}
	end := b.ended(s)
	if end.ExitCode != 7 || end.Error != "" {
		t.Errorf("%+v", end)
	}
	// The last line says that no write has ever failed.
	if others := b.numbered(lines); len(others) != 1 || !strings.HasPrefix(others[0], `{"log":"done\n"`) {
		t.Errorf("other lines: %q", others)
	}
	if kills < 10 {
		t.Errorf("only %d kills", kills)
	}
	t.Logf("%d kills", kills)
}

func TestContainerNeverHasTwoShims(t *testing.T) {
	b := newBox(t, "sleep 1000")
	s, _ := b.started()
	if _, err := b.tryAdopt(nil); err == nil || !strings.Contains(err.Error(), "another shim holds") {
		t.Errorf("a second shim: %v", err)
	}
	boot := b.boot
	boot.Life++
	if _, err := client.Spawn(ctx(t), client.Options{Binary: shimBinary, Bootstrap: boot}); err == nil || !strings.Contains(err.Error(), "another shim holds") {
		t.Errorf("adoption of a container in another life: %v", err)
	}
	if st, err := s.State(ctx(t)); err != nil || st.Status != proto.StatusRunning {
		t.Errorf("%+v %v", st, err)
	}
	if _, err := s.Stop(ctx(t), proto.Stop{Signal: 9}); err != nil {
		t.Error(err)
	}
	b.ended(s)
}

// The process that becomes the container's parent may reap it before the shim
// can read the exit code.
func TestExitCodeIsExactAlsoWhenAnotherProcessReapsTheContainer(t *testing.T) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	knows := major > 6 || major == 6 && minor >= 15

	// From here on orphans become children of the test.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	b := newBox(t, "trap 'exit 42' TERM; echo ready; while :; do sleep 0.02; done")
	s := b.spawn()
	c := b.attach(s, proto.Attach{Stdout: true, Raw: true})
	st, err := s.Start(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	c.until("ready")
	kept := b.keep(s)
	b.killShim(s)
	if err := unix.PidfdSendSignal(int(kept.Pidfd.Fd()), unix.SIGTERM, nil, 0); err != nil {
		t.Fatal(err)
	}
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(st.Pid, &ws, 0, nil); err != unix.EINTR {
			if err != nil || ws.ExitStatus() != 42 {
				t.Fatalf("the test reaped %v %v", ws, err)
			}
			break
		}
	}
	s = b.adopt(kept)
	end := b.ended(s)
	switch {
	case knows && (end.ExitCode != 42 || end.Error != ""):
		t.Errorf("%+v", end)
	case !knows && (end.ExitCode != 255 || !strings.Contains(end.Error, "exit code is unknown")):
		t.Errorf("on Linux %d.%d: %+v", major, minor, end)
	}
}

// Only the files and the process are needed. A daemon that starts later has
// nothing else.
func TestAdoptionNeedsNothingThatTheDaemonHeld(t *testing.T) {
	b := newBox(t, "i=0; trap 'exit 5' TERM; while :; do i=$((i+1)); echo $i; sleep 0.01; done")
	b.boot.Health = &proto.Health{Process: raw(t, process("true")), Interval: 50e6, Timeout: 10e9, Retries: 3}
	s, ev := b.started()
	ev.wait("healthy", func(e proto.Event) bool { return e.Attributes["health"] == "healthy" })
	b.killShim(s)
	s = b.adopt(nil)
	again := b.subscribe(s, 0)
	checked := s.Hello().State.Health
	again.wait("another check", func(e proto.Event) bool {
		return e.State.Health != nil && e.State.Health.Log[len(e.State.Health.Log)-1].End.After(checked.Log[len(checked.Log)-1].End)
	})
	st, err := s.Stop(ctx(t), proto.Stop{Default: true})
	if err != nil || st.ExitCode != 5 {
		t.Errorf("%+v %v", st, err)
	}
	b.ended(s)
	b.numbered(strings.Count(b.logLines("stdout"), "\n"))
	for i, e := range again.actions() {
		if want := []string{"start", "health_status", "die", "exited"}[i]; e != want {
			t.Errorf("%v", again.actions())
			break
		}
	}
}
