// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/descriptor"
)

// process is a child of the shim, born or reparented to it as subreaper, or a
// foreign process.
type process struct {
	pid    int
	pidfd  *os.File // becomes readable at the exit
	exited chan struct{}
	status syscall.WaitStatus // valid once exited is closed
	lost   bool               // the status is unknown; valid once exited is closed

	// foreign: not a child. start is its start time, which tells it from a later
	// process with the same pid.
	foreign bool
	start   uint64
	ended   bool // status is valid; set within a step (see quiesce.go)
}

// exitCode returns the exit code as a shell and Docker report it: 128+n for signal
// n.
func (p *process) exitCode() int {
	if p.status.Signaled() {
		return 128 + int(p.status.Signal())
	}
	return p.status.ExitStatus()
}

// hasEnded asks the kernel, which knows of an exit before the shim has noticed it.
func (p *process) hasEnded() bool {
	if p.pidfd == nil {
		return true
	}
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return true
	}
	ended := true
	if raw.Control(func(fd uintptr) { ended = hasExited(int(fd)) }) != nil {
		return true // closed, so it has exited
	}
	return ended
}

// signal sends a signal to this process and never to a later one with the same pid.
func (p *process) signal(sig syscall.Signal) error {
	if p.pidfd == nil {
		return syscall.ESRCH
	}
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); cerr != nil {
		return syscall.ESRCH // closed, so it has exited
	}
	return err
}

// reaper is the only caller of wait, and reaps every child, registered or not: a
// zombie in the container's pid namespace would keep the container's first process
// from ending. collect reaps whenever the pidfd of a registered child becomes
// readable. Orphans of a runtime call are therefore reaped with the next call at
// the latest.
//
// Unregistered children can also appear at any other time. If the container shares
// its pid namespace, orphans in that namespace are reparented to the shim. And
// processes of exec sessions and health checks, which are children of the shim, may
// create siblings with CLONE_PARENT. For these cases listenSIGCHLD reaps at every
// SIGCHLD. That takes two more threads, which the shim of a plain container saves.
type reaper struct {
	mu        sync.Mutex
	known     map[int]*process // registered children, by pid
	adoptions int              // calls in progress that will adopt a child
	// strays are the statuses of unregistered children that were reaped during an
	// adoption.
	strays map[int]syscall.WaitStatus

	listening sync.Once
}

func newReaper() *reaper {
	return &reaper{known: map[int]*process{}, strays: map[int]syscall.WaitStatus{}}
}

// beginAdoption makes the reaper keep the statuses of unregistered children until
// endAdoption.
func (r *reaper) beginAdoption() {
	r.mu.Lock()
	r.adoptions++
	r.mu.Unlock()
}

func (r *reaper) endAdoption() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.adoptions--; r.adoptions == 0 {
		clear(r.strays)
	}
}

// adopt registers a child that the runtime left behind, which may have ended
// already. The caller has called beginAdoption before the runtime.
func (r *reaper) adopt(pid int) (*process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if status, ended := r.strays[pid]; ended && !isChild(pid) {
		p := &process{pid: pid, exited: make(chan struct{})}
		p.setStatus(status)
		return p, nil
	}
	return r.watch(pid)
}

// spawn starts and registers a child.
func (r *reaper) spawn(path string, argv []string, attr *syscall.ProcAttr) (*process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return nil, os.NewSyscallError("exec "+path, err)
	}
	return r.watch(pid)
}

// watch registers a child that can't have been reaped yet. It is called with the
// lock held.
func (r *reaper) watch(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		unix.Kill(pid, unix.SIGKILL) // a child that can't be watched must not keep running
		return nil, os.NewSyscallError("pidfd_open "+strconv.Itoa(pid), err)
	}
	return r.watchPidfd(pid, fd)
}

// watchPidfd registers a child by its pidfd. It is called with the lock held.
func (r *reaper) watchPidfd(pid, pidfd int) (*process, error) {
	p := &process{pid: pid, pidfd: os.NewFile(uintptr(pidfd), "process"), exited: make(chan struct{})}
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		p.pidfd.Close()
		return nil, err
	}
	if status, ended := r.strays[pid]; ended && !isChild(pid) {
		p.setStatus(status)
		return p, nil
	}
	r.known[pid] = p
	go func() {
		rerr := raw.Read(func(uintptr) bool {
			motion.RLock()
			defer motion.RUnlock()
			r.mu.Lock()
			defer r.mu.Unlock()
			r.collect()
			// A tracer can delay the reaping. The pidfd then becomes readable once
			// more.
			return p.ended || !isChild(pid)
		})
		motion.RLock()
		defer motion.RUnlock()
		r.mu.Lock()
		defer r.mu.Unlock()
		if !p.ended {
			// This should not happen: the process is not a child, or was reaped
			// elsewhere. Its status is lost.
			logf("wait for process %d: its exit status is lost (%v)", pid, rerr)
			delete(r.known, pid)
			p.lost = true
			p.setStatus(unknownStatus)
		}
	}()
	return p, nil
}

// setStatus records how the process ended. It is called once, within a step.
func (p *process) setStatus(status syscall.WaitStatus) {
	p.status, p.ended = status, true
	close(p.exited)
}

// collect reaps all children that have ended. It never blocks. It is called within
// a step, with the lock held.
func (r *reaper) collect() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG|syscall.WALL, nil)
		switch {
		case err == syscall.EINTR:
			continue
		case err != nil || pid <= 0:
			return
		}
		if p := r.known[pid]; p != nil {
			delete(r.known, pid)
			p.setStatus(status)
		} else if r.adoptions > 0 {
			r.strays[pid] = status
		}
	}
}

// isChild reports whether there is a child with this pid that is not reaped yet.
func isChild(pid int) bool {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT|unix.WALL, nil)
		if err != unix.EINTR {
			return err == nil
		}
	}
}

// listenSIGCHLD makes the shim reap at every SIGCHLD, from now on. It is
// idempotent.
func (r *reaper) listenSIGCHLD() {
	r.listening.Do(func() {
		sigchld := make(chan os.Signal, 1)
		signal.Notify(sigchld, syscall.SIGCHLD)
		go func() {
			for {
				motion.RLock()
				r.mu.Lock()
				r.collect()
				r.mu.Unlock()
				motion.RUnlock()
				<-sigchld
			}
		}()
	})
}

// foreign watches a process that is not a child: that of a container whose shim was
// killed. pidfd was opened while the pid was known to be the right process, or is
// -1; then the start time identifies the process. A process that is not found has
// ended with an unknown status.
func foreign(pid int, start uint64, pidfd int) *process {
	p := &process{pid: pid, exited: make(chan struct{}), foreign: true, start: start}
	gone := func() *process {
		p.status, p.lost, p.ended = unknownStatus, true, true
		close(p.exited)
		return p
	}
	if pidfd < 0 {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return gone()
		}
		if startTime(pid) != start {
			unix.Close(fd)
			return gone()
		}
		pidfd = fd
	}
	unix.SetNonblock(pidfd, true)
	p.pidfd = os.NewFile(uintptr(pidfd), "process")
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return gone()
	}
	go func() {
		raw.Read(func(fd uintptr) bool {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			for {
				n, err := unix.Poll(fds, 0)
				if err != unix.EINTR {
					return n != 0
				}
			}
		})
		raw.Control(func(fd uintptr) {
			motion.RLock()
			defer motion.RUnlock()
			p.status, p.lost = foreignStatus(int(fd), pid, start)
			p.ended = true
		})
		close(p.exited)
	}()
	return p
}

// unknownStatus stands for an unknown status: exit code 255.
const unknownStatus = syscall.WaitStatus(255 << 8)

// foreignStatus reads how another process's child ended. Until its parent reaps it,
// /proc has the status; after that the pidfd has it, since Linux 6.15.
func foreignStatus(pidfd, pid int, start uint64) (status syscall.WaitStatus, lost bool) {
	for range 2 {
		info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
		if err := unix.IoctlPidfdInfo(pidfd, &info); err == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0 {
			return syscall.WaitStatus(info.Exit_code), false
		}
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err == nil && parseStartTime(b) == start {
			if code, ok := parseZombie(b); ok {
				return code, false
			}
		}
		// It was reaped between the two reads, so ask the pidfd again.
	}
	return unknownStatus, true
}

// ticksPerSecond is USER_HZ, the unit of times in /proc: 100 on every architecture
// that Go supports.
const ticksPerSecond = 100

// startTime returns field 22 of /proc/PID/stat, in clock ticks since boot, or 0 if
// there is no such process.
func startTime(pid int) uint64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	return parseStartTime(b)
}

// parseStartTime counts fields from the end of the command name, which may contain
// spaces and parentheses.
func parseStartTime(stat []byte) uint64 {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const field = 22 - 3 // the first one here is the third
	if len(fields) <= field {
		return 0
	}
	n, _ := strconv.ParseUint(string(fields[field]), 10, 64)
	return n
}

// parseZombie returns the wait status of a zombie, field 52 of /proc/PID/stat. It
// reports false for other processes.
func parseZombie(stat []byte) (syscall.WaitStatus, bool) {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const field = 52 - 3 // the first one here is the third
	if len(fields) <= field || string(fields[0]) != "Z" {
		return 0, false
	}
	n, err := strconv.Atoi(string(fields[field]))
	return syscall.WaitStatus(n), err == nil
}

// closePidfd waits for the exit and closes the pidfd.
func (p *process) closePidfd() {
	<-p.exited
	if p.pidfd != nil {
		p.pidfd.Close()
	}
}

// privatePids reports whether an OCI config.json asks for a private pid namespace.
// The file may be large, so it is searched and not decoded. Text that is not
// recognised counts as no private namespace.
func privatePids(config []byte) bool {
	for _, want := range []string{`"type":"pid"`, `"type": "pid"`} {
		if i := bytes.Index(config, []byte(want)); i >= 0 {
			from := bytes.LastIndexByte(config[:i], '{')
			to := bytes.IndexByte(config[i:], '}')
			return from >= 0 && to >= 0 && !bytes.Contains(config[from:i+to], []byte(`"path"`))
		}
	}
	return false
}

// bundlePrivatePids is privatePids for a file, which it maps: the heap would keep
// the memory of a read.
func bundlePrivatePids(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Size == 0 {
		return false
	}
	b, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return false
	}
	defer unix.Munmap(b)
	return privatePids(b)
}

// savedProcess is a process in the handover state.
type savedProcess struct {
	Pid     int    `json:"pid"`
	Pidfd   int    `json:"pidfd"`
	Foreign bool   `json:"foreign,omitempty"`
	Start   uint64 `json:"start,omitempty"`
	Over    bool   `json:"over,omitempty"`
	Status  uint32 `json:"status,omitempty"`
	Lost    bool   `json:"lost,omitempty"`
}

func (p *process) save() savedProcess {
	return savedProcess{Pid: p.pid, Pidfd: descriptor.Number(p.pidfd), Foreign: p.foreign, Start: p.start,
		Over: p.ended, Status: uint32(p.status), Lost: p.lost}
}

// restore watches the process again.
func (i savedProcess) restore(r *reaper) (*process, error) {
	if i.Over || i.Pidfd < 0 {
		p := &process{pid: i.Pid, pidfd: descriptor.File(i.Pidfd, "process"), exited: make(chan struct{}), foreign: i.Foreign,
			start: i.Start, status: syscall.WaitStatus(i.Status), lost: i.Lost, ended: true}
		close(p.exited)
		return p, nil
	}
	if i.Foreign {
		return foreign(i.Pid, i.Start, i.Pidfd), nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.watchPidfd(i.Pid, i.Pidfd)
}
