// SPDX-License-Identifier: Apache-2.0

package storm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/test/kit"
	"holdfast/test/storm/model"
)

// other is a daemon with a data root of its own on the same host, with a container
// that no fault of a storm may touch.
type other struct {
	d    *kit.Daemon
	was  string // pid, start time and restart count of its container
	port string
}

const witness = "witness"

func newOther(t testing.TB) *other {
	t.Helper()
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.ProgramImage(t, "./player"))
	d.Holdfast("run", "-d", "--name", witness, "-p", "127.0.0.1::80", "-v", "/state", image, "player", witness, "0", "0", "false")
	o := &other{d: d}
	o.was, o.port = o.look(), strings.TrimSpace(d.Holdfast("port", witness, "80/tcp"))
	pid, _, _ := strings.Cut(o.was, " ")
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	unix.Kill(n, unix.SIGUSR2) // it need not write
	return o
}

func (o *other) look() string {
	r := o.d.TryHoldfast("inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}} {{.RestartCount}} {{.State.Status}}", witness)
	return strings.TrimSpace(r.Stdout + r.Stderr)
}

// kill kills the other daemon and starts it again.
func (o *other) kill(s *storm) {
	unix.Kill(o.d.Pid(), unix.SIGKILL)
	o.d.WaitExit()
	if err := o.d.TryStart(); err != nil {
		s.violate("other", "the other daemon does not start: %v", err)
	}
}

// judge looks whether the other container has noticed anything.
func (o *other) judge(s *storm) {
	if now := o.look(); now != o.was {
		s.violate("other", "the container of the other daemon was %q and is %q", o.was, now)
	}
	if got, err := hello(o.port); err != nil || !strings.HasPrefix(got, witness+" ") {
		s.violate("other", "the port of the other daemon's container: %q %v", got, err)
	}
}

// replace upgrades the daemon by the command. A daemon that is to die at a failpoint
// is left alone: nobody could say then which process is the daemon.
func (s *storm) replace() bool {
	if s.armedAt() != "" || !s.d.Running() {
		return false
	}
	for _, l := range s.slots {
		l.mu.Lock()
		l.model.SawDaemonBegin()
		l.mu.Unlock()
	}
	r := s.d.TryHoldfast("daemon", "upgrade", "--wait", "60")
	s.note("upgrade of the daemon: %d %s", r.Code, shorten(r.Stdout+r.Stderr))
	_, rest, ok := strings.Cut(r.Stdout, " pid ")
	pid := 0
	if ok {
		fmt.Sscanf(rest, "%d", &pid)
	}
	if r.Code != 0 || pid == 0 {
		if !strings.Contains(r.Stderr, "busy") {
			s.violate("upgrade", "%d %s%s", r.Code, r.Stdout, r.Stderr)
		}
		return false
	}
	s.d.Became(pid)
	return true
}

// noFiles makes a process unable to open more than a few further files for a while.
func (s *storm) noFiles(pid int, f model.Fault) bool {
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return false
	}
	highest := 0
	for _, e := range open {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			highest = max(highest, n)
		}
	}
	var was unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &was); err != nil {
		return false
	}
	few := unix.Rlimit{Cur: uint64(highest + 1 + f.N%4), Max: was.Max}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &few, nil); err != nil {
		return false
	}
	last(f)
	unix.Prlimit(pid, unix.RLIMIT_NOFILE, &was, nil)
	return true
}

// noMemory puts the daemon into a cgroup that allows it hardly more memory than it
// has, until the kernel kills it or the time is over.
func (s *storm) noMemory(f model.Fault) bool {
	root := "/sys/fs/cgroup/memory"
	limit := "memory.limit_in_bytes"
	if _, err := os.Stat(root + "/" + limit); errors.Is(err, fs.ErrNotExist) {
		root, limit = "/sys/fs/cgroup", "memory.max"
	}
	dir := filepath.Join(root, s.d.ID+"-memory")
	if err := os.Mkdir(dir, 0o755); err != nil {
		s.note("memory: %v", err)
		return false
	}
	pid := strconv.Itoa(s.d.Pid())
	defer func() {
		// What the daemon has started meanwhile goes back with it.
		for range 100 {
			procs, _ := os.ReadFile(dir + "/cgroup.procs")
			for p := range strings.FieldsSeq(string(procs)) {
				os.WriteFile(root+"/cgroup.procs", []byte(p), 0) // it may have ended
			}
			if os.Remove(dir) == nil {
				return
			}
			<-time.After(10 * time.Millisecond)
		}
		s.violate("driver", "the cgroup %s can't be removed", dir)
	}()
	for _, l := range s.slots {
		s.orphan(l) // shims that start meanwhile may be killed too
	}
	err := os.WriteFile(dir+"/"+limit, []byte(strconv.Itoa((1+f.N%8)<<19)), 0)
	if err == nil {
		err = os.WriteFile(dir+"/cgroup.procs", []byte(pid), 0)
	}
	if err != nil {
		s.note("memory: %v", err)
		return false
	}
	select {
	case <-s.d.Exited():
		s.revive(f.Kind, "")
		return true
	case <-time.After(time.Duration(f.Time+200) * time.Millisecond):
		s.note("memory: the daemon needed no more")
	}
	return false
}
