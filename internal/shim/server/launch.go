// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/cgroup"
	"holdfast/internal/shim/proto"
)

// run is one run of the container's process.
type run struct {
	proc    *process
	io      *runIO
	oom     *cgroup.OOMWatch
	started time.Time // the time of day, for the record
	began   time.Time // the same moment on the monotonic clock: the other may be set
}

// newRun is a run that has just begun.
func newRun(proc *process, io *runIO, oom *cgroup.OOMWatch) *run {
	now := time.Now()
	return &run{proc: proc, io: io, oom: oom, started: now.UTC(), began: now}
}

// resumedRun is a run that another shim, or another binary of this one, has begun. The
// kernel keeps the start of its process in ticks since the boot, which no setting of the
// clock changes.
func resumedRun(proc *process, io *runIO, oom *cgroup.OOMWatch, started time.Time, pidStart uint64) *run {
	age := max(time.Since(started), 0)
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err == nil && pidStart > 0 {
		age = time.Duration(now.Nano()) - time.Duration(pidStart)*(time.Second/ticksPerSecond)
	}
	return &run{proc: proc, io: io, oom: oom, started: started, began: time.Now().Add(-age)}
}

// launch makes the stdio and calls the runtime, both for the first run and for a
// restart.
func (v *supervisor) launch() (*run, error) {
	s := v.shim
	v.mu.Lock()
	rows, cols := v.rows, v.cols
	v.mu.Unlock()
	io, err := s.out.newRunIO(s.boot, s.dirfd, rows, cols)
	if err != nil {
		return nil, err
	}
	pidFile := filepath.Join(s.boot.RunDir, proto.PidFile)
	os.Remove(pidFile)
	args := []string{"--detach", "--pid-file", pidFile, "--bundle", s.boot.Bundle}
	if io.console != nil {
		args = append(args, "--console-socket", io.console.address())
	}
	err = makeSystemFolders(s.boot.Bundle)
	if err == nil {
		err = joinAll(s.boot.RunDir, s.boot.Join)
	}
	if err != nil {
		io.close()
		return nil, err
	}
	s.reaper.beginAdoption()
	defer s.reaper.endAdoption()
	if err := s.runtime.call(io.child, "run", append(args, s.boot.ID)...); err != nil {
		io.close()
		return nil, err
	}
	pid, err := readPid(pidFile)
	if err != nil {
		io.close()
		v.deleteContainer()
		return nil, err
	}
	proc, err := s.reaper.adopt(pid)
	if err != nil {
		io.close()
		v.deleteContainer()
		return nil, err
	}
	r := newRun(proc, io, cgroup.WatchOOM(s.boot.OOMFile, s.boot.OOMKey))
	if err := io.started(s.boot); err != nil {
		r.oom.End(false)
		io.close()
		r.proc.signal(syscall.SIGKILL)
		v.deleteContainer()
		return nil, err
	}
	v.mu.Lock()
	v.current = r
	if v.rows != rows || v.cols != cols { // resized meanwhile
		resizeFile(io.master, v.rows, v.cols)
	}
	v.mu.Unlock()
	s.rec.change(func(st *proto.State) {
		st.Status, st.Pid, st.PidStart = proto.StatusRunning, pid, startTime(pid)
		st.Started, st.Error, st.OOMKilled = r.started, "", false
		st.NextRestart = time.Time{}
		if s.boot.Health != nil {
			st.Health = firstHealth(st.Health, s.boot.HealthLog)
		}
	}, note{action: proto.ActionStart})
	if s.boot.Health != nil {
		go newHealthChecker(s, r).run()
	}
	return r, nil
}

// start is the first launch. If it fails the container's life is over.
func (v *supervisor) start() (proto.State, error) {
	s := v.shim
	if !v.starting.CompareAndSwap(false, true) {
		return proto.State{}, conflict("container was already started")
	}
	fail := func(err error, code int) (proto.State, error) {
		now := time.Now().UTC()
		msg := err.Error()
		s.rec.change(func(st *proto.State) {
			st.Status, st.Finished, st.ExitCode, st.Error = proto.StatusExited, now, code, msg
		})
		go v.enterAndFinish(v.recordExit())
		return proto.State{}, &proto.Error{Kind: proto.KindRuntime, Message: msg, ExitCode: code}
	}
	if err := s.out.openLog(s.boot.Log, s.boot.RunDir, false); err != nil {
		return fail(fmt.Errorf("failed to initialize logging driver: %w", err), exitRuntime)
	}
	s.countDropped(0)
	if !bundlePrivatePids(filepath.Join(s.boot.Bundle, "config.json")) {
		s.reaper.listenSIGCHLD()
	}
	r, err := v.launch()
	if err != nil {
		// Delete what the runtime may have left behind, unless a container of this
		// name was there before: it may be alive. runc and crun report it so.
		if !strings.Contains(err.Error(), "already exists") {
			v.deleteContainer()
		}
		return fail(startFailure(err), startExitCode(err.Error()))
	}
	st := s.rec.snapshot()
	go v.supervise(r, 0)
	return st, nil
}

// runDirRemoved reports whether the run directory was removed. The container can't
// be started then, and no client could find the shim to stop it.
func (v *supervisor) runDirRemoved() bool {
	var st unix.Stat_t
	return unix.Fstat(v.shim.dirfd, &st) == nil && st.Nlink == 0
}

// deleteContainer removes the runtime's state of the container. The first delete is
// not forced: runc 1.3 and later sleep for 100 ms in a forced one. For a container
// whose process has ended it suffices, and also kills what is left in its cgroup.
func (v *supervisor) deleteContainer() {
	s := v.shim
	err := s.runtime.call(noStdio, "delete", s.boot.ID)
	if err != nil {
		err = s.runtime.call(noStdio, "delete", "--force", s.boot.ID)
	}
	if err != nil {
		logf("delete: %v", err)
	}
}

// running returns the current run, or nil.
func (v *supervisor) running() *run {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.current
}

// terminal returns a copy of the master of the current run's terminal.
func (v *supervisor) terminal() (int, error) {
	r := v.running()
	if r == nil || r.io.master == nil {
		return -1, conflict("the container has no terminal now")
	}
	raw, err := r.io.master.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	if cerr := raw.Control(func(master uintptr) { fd, err = unix.FcntlInt(master, unix.F_DUPFD_CLOEXEC, 3) }); cerr != nil {
		return -1, conflict("the container has no terminal now")
	}
	return fd, err
}

func (v *supervisor) resize(r proto.Resize) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.rows, v.cols = r.Height, r.Width
	if v.current == nil {
		return nil // for the next run
	}
	return resizeFile(v.current.io.master, r.Height, r.Width)
}
