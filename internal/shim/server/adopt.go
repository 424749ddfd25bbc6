// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/cgroup"
	"holdfast/internal/shim/proto"
)

// A shim that is killed leaves everything that the next one needs: the container's
// processes, which hold their ends of the streams, and the run directory. There,
// bootstrap.json has the parameters, state.json and the journal have what the shim
// had seen, and the ledger has the output that it was moving. adopt continues from
// there.

// lock takes the lock that keeps two shims from supervising one container. The
// kernel releases it when the process ends, whatever the reason.
func lock(runDir string) (int, error) {
	fd, err := unix.Open(runDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: runDir, Err: err}
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		unix.Close(fd)
		if err == unix.EWOULDBLOCK {
			return -1, fmt.Errorf("another shim holds %s: a container has only one", runDir)
		}
		return -1, &os.PathError{Op: "lock", Path: runDir, Err: err}
	}
	return fd, nil
}

// inherited are the descriptors that come with Adopt; -1 means none.
type inherited struct{ pidfd, master, stdin int }

// takeInherited takes the descriptors that a announces off the list.
func takeInherited(a *proto.Adopt, fds []int) (in inherited, rest []int) {
	take := func(there bool) int {
		if !there || len(fds) == 0 {
			return -1
		}
		fd := fds[0]
		fds = fds[1:]
		return fd
	}
	in.pidfd = take(a.Pidfd)
	in.master = take(a.Terminal)
	in.stdin = take(a.Stdin)
	return in, fds
}

// adoptedFDs returns how many descriptors come with Adopt.
func adoptedFDs(a *proto.Adopt) int {
	n := 0
	if a != nil {
		for _, there := range []bool{a.Pidfd, a.Terminal, a.Stdin} {
			if there {
				n++
			}
		}
	}
	return n
}

// adopt continues the supervision of a container whose shim was killed. It is
// called before any connection is served. What it starts runs in its own
// goroutines.
func (s *Shim) adopt(in inherited) error {
	s.life.starting.Store(true)
	before := s.rec.snapshot()
	if before.Status == proto.StatusCreated {
		return errors.New("the previous shim was killed before the container ran: there is nothing to adopt")
	}
	if err := s.out.openLog(s.boot.Log, s.boot.RunDir, true); err != nil {
		// A container goes on running without its log.
		logf("log: %v: the container's output is discarded", err)
		s.boot.Log = proto.Log{Driver: "none"}
		if err := s.out.openLog(s.boot.Log, s.boot.RunDir, false); err != nil {
			return err
		}
	}
	s.countDropped(before.LogDropped)
	s.adoptExecs(before.Execs)

	switch before.Status {
	case proto.StatusRunning, proto.StatusPaused:
		proc := foreign(before.Pid, before.PidStart, in.pidfd)
		if is, known := cgroup.Frozen(before.Pid); known && startTime(before.Pid) == before.PidStart {
			// The previous shim may have been killed before it recorded a pause or
			// resume.
			s.rec.change(func(st *proto.State) {
				if st.Status = proto.StatusRunning; is {
					st.Status = proto.StatusPaused
				}
			})
		}
		io, err := s.out.reopen(s.boot, in.master, in.stdin)
		if err != nil {
			// The container goes on running, and its output is lost.
			logf("reopen the container's streams: %v", err)
			io = &runIO{out: s.out, child: noStdio}
		}
		r := resumedRun(proc, io, cgroup.WatchOOM(s.boot.OOMFile, s.boot.OOMKey), before.Started, before.PidStart)
		s.life.current = r
		if s.rec.snapshot().Status == proto.StatusPaused {
			s.stops.watchDoomed(r)
		}
		io.run(s.boot)
		if s.boot.Health != nil && before.Health != nil {
			go newHealthChecker(s, r).run()
		}
		go s.life.supervise(r, 0)
	case proto.StatusRestarting:
		// The previous shim may have been killed during a call of the runtime. Remove
		// what that call left: it would make the next one fail.
		s.life.deleteContainer()
		go s.life.supervise(nil, max(before.NextRestart.Sub(before.Finished), 0))
	default:
		// Only the last steps of the container's end remain.
		go s.life.enterAndFinish(s.life.recordExit())
	}
	return nil
}

// adoptExecs records that the exec sessions of the previous shim are over, for
// clients that wait for them. Their processes may still run, but this shim can't
// learn how they end.
func (s *Shim) adoptExecs(list []proto.ExecState) {
	var notes []note
	s.execs.mu.Lock()
	for _, x := range list {
		if x.Running {
			x.Running, x.Pid, x.ExitCode = false, 0, unknownStatus.ExitStatus()
			notes = append(notes, note{proto.ActionExecDie, map[string]string{
				"execID": x.Exec, "exitCode": strconv.Itoa(x.ExitCode)}})
		}
		if !x.Started {
			continue // only the previous shim had its process spec
		}
		over := newSession(proto.ExecCreate{Exec: x.Exec, Info: x.Info}, x)
		close(over.ended)
		s.execs.list = append(s.execs.list, over)
	}
	s.execs.mu.Unlock()
	s.rec.change(func(st *proto.State) { st.Execs = s.execs.states() }, notes...)
}

// unknownExit is the error of a container whose exit code could not be read.
const unknownExit = "the exit code is unknown: the container's shim was killed, and this kernel can't tell how a process ended that is not a child (Linux 6.15 and later can)"
