package server

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
)

// A shim that is killed leaves everything that the next one needs: the
// container's processes, which hold their ends of the streams; in the run
// directory what it was told (bootstrap.json), what it had seen (state.json,
// the journal) and what it was moving (the ledger). adopt goes on from there.

// lock makes sure that no two shims ever supervise one container. It goes with
// the process, however that ends.
func lock(runDir string) (int, error) {
	fd, err := unix.Open(runDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: runDir, Err: err}
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		unix.Close(fd)
		if err == unix.EWOULDBLOCK {
			return -1, fmt.Errorf("another shim holds %s: a container has one", runDir)
		}
		return -1, &os.PathError{Op: "lock", Path: runDir, Err: err}
	}
	return fd, nil
}

// keepBootstrap writes what the next shim is to know.
func (s *Shim) keepBootstrap() error {
	s.mu.Lock()
	b := *s.boot
	b.Restart = s.policy
	s.mu.Unlock()
	s.rec.mu.Lock()
	b.Attributes = s.rec.attrs
	s.rec.mu.Unlock()
	b.Adopt = nil
	raw, err := proto.Marshal(&b)
	if err != nil {
		return err
	}
	path := filepath.Join(b.RunDir, proto.BootstrapFile)
	if err := os.WriteFile(path+".tmp", raw, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// inherited are the descriptors that come with an Adopt; -1 for none.
type inherited struct{ pidfd, master, stdin int }

// takeInherited takes them off the list.
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

// adoptedFDs is how many descriptors come with an Adopt.
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

// adopt takes over where the last shim was killed. It is called before anybody
// is served; what it starts runs on beside.
func (s *Shim) adopt(in inherited) error {
	s.starting.Store(true)
	before := s.rec.snapshot()
	if before.Status == proto.StatusCreated {
		return errors.New("the last shim was killed before the container ran: there is nothing to adopt")
	}
	if err := s.out.openLog(s.boot.Log, s.boot.RunDir, true); err != nil {
		// The container runs, whatever becomes of its log.
		logf("log: %v: the container's output is thrown away", err)
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
		if is, known := frozen(before.Pid); known && startTime(before.Pid) == before.PidStart {
			// The last shim may have been killed before it could record it.
			s.rec.change(func(st *proto.State) {
				if st.Status = proto.StatusRunning; is {
					st.Status = proto.StatusPaused
				}
			})
		}
		io, err := s.out.reopen(s.boot, in.master, in.stdin)
		if err != nil {
			// Nothing that it writes can be read; it runs all the same.
			logf("the container's streams can't be opened again: %v", err)
			io = &runIO{out: s.out, child: noStdio}
		}
		r := &run{proc: proc, io: io, started: before.Started}
		s.current = r
		io.run(s.boot)
		if s.boot.Health != nil && before.Health != nil {
			go s.watchHealth(*s.boot.Health, r.started, proc.exited)
		}
		go s.supervise(r, 0)
	case proto.StatusRestarting:
		// It may have been killed within the runtime's call: what that left is
		// in the way of the next.
		s.deleteContainer()
		go s.supervise(nil, max(before.NextRestart.Sub(before.Finished), 0))
	default:
		// All but the last steps were done.
		go s.finishAlone(s.recordExit())
	}
	return nil
}

// adoptExecs records that the sessions of the last shim are over for whoever
// waits for them. Their processes may run on, but nobody can tell how they end.
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
			continue // its process was known to the last shim alone
		}
		ended := make(chan struct{})
		close(ended)
		s.execs.list = append(s.execs.list, &session{create: proto.ExecCreate{Exec: x.Exec, Info: x.Info}, state: x, ended: ended})
	}
	s.execs.mu.Unlock()
	s.rec.change(func(st *proto.State) { st.Execs = s.execs.states() }, notes...)
}

// unknownExit are the words for an exit that nobody could see.
const unknownExit = "the exit code is unknown: the container's shim was killed, and this kernel can't tell how a process ended that is not a child (Linux 6.15 and later can)"
