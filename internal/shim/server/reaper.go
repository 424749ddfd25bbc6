package server

import (
	"bytes"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// process is a child, by birth or by adoption as its subreaper.
type process struct {
	pid    int
	pidfd  *os.File // the poller tells when it becomes readable: at the exit
	exited chan struct{}
	status syscall.WaitStatus // valid once exited is closed
	lost   bool               // the status is not known; valid as status is

	// foreign: it is not a child, and start tells it from later ones.
	foreign bool
	start   uint64
	over    bool // status is there, set within a step (see still.go)
}

// exitCode is the status as a shell and Docker give it: 128+n for signal n.
func (p *process) exitCode() int {
	if p.status.Signaled() {
		return 128 + int(p.status.Signal())
	}
	return p.status.ExitStatus()
}

// signal reaches this process and no other that got its number later.
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

// reaper waits for children, each by its own pidfd: a child stays a zombie and
// its number taken until the shim, which knows it, has read its status. No
// signal handling is needed for that, which would take two more threads.
//
// Only where the container shares its pid namespace with others do unknown
// processes become the shim's children. sweepOrphans then reaps them.
type reaper struct {
	mu    sync.Mutex
	known map[int]struct{}
	holds int  // someone is about to adopt a child that is not yet known
	due   bool // a sweep came meanwhile
}

func newReaper() *reaper { return &reaper{known: map[int]struct{}{}} }

// hold keeps the status of children that are not yet known until release.
func (r *reaper) hold() {
	r.mu.Lock()
	r.holds++
	r.mu.Unlock()
}

func (r *reaper) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.holds--; r.holds == 0 && r.due {
		r.sweep()
	}
}

// adopt watches a child that the runtime left behind. The caller holds the
// reaper since before the runtime was called.
func (r *reaper) adopt(pid int) (*process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.watch(pid)
}

// spawn starts a child of the shim's own.
func (r *reaper) spawn(path string, argv []string, attr *syscall.ProcAttr) (*process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return nil, os.NewSyscallError("exec "+path, err)
	}
	return r.watch(pid)
}

// watch is called with the lock held, for a child that nobody can have reaped.
func (r *reaper) watch(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		unix.Kill(pid, unix.SIGKILL) // what can't be watched must not run on
		return nil, os.NewSyscallError("pidfd_open "+strconv.Itoa(pid), err)
	}
	return r.follow(pid, fd)
}

// follow waits for a child by its pidfd. It is called with the lock held.
func (r *reaper) follow(pid, pidfd int) (*process, error) {
	p := &process{pid: pid, pidfd: os.NewFile(uintptr(pidfd), "process"), exited: make(chan struct{})}
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		p.pidfd.Close()
		return nil, err
	}
	r.known[pid] = struct{}{}
	go func() {
		var got int
		var werr error
		rerr := raw.Read(func(uintptr) bool {
			motion.RLock()
			defer motion.RUnlock()
			for {
				got, werr = syscall.Wait4(pid, &p.status, syscall.WNOHANG, nil)
				if werr != syscall.EINTR {
					p.over = got != 0
					return p.over
				}
			}
		})
		if rerr != nil || werr != nil {
			// Not our child, against all promises: its status is lost.
			logf("wait for %d: %v %v", pid, rerr, werr)
			p.status, p.lost = unknownStatus, true
		}
		r.mu.Lock()
		delete(r.known, pid)
		r.mu.Unlock()
		close(p.exited)
	}()
	return p, nil
}

// foreign watches a process that is not a child: the one of a container whose
// shim was killed. pidfd was opened while the process was known to be the right
// one, or is -1: then start, its start time, tells. A process that can't be
// found any more has exited, with a status that nobody knows.
func foreign(pid int, start uint64, pidfd int) *process {
	p := &process{pid: pid, exited: make(chan struct{}), foreign: true, start: start}
	gone := func() *process {
		p.status, p.lost, p.over = unknownStatus, true, true
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
			p.over = true
		})
		close(p.exited)
	}()
	return p
}

// unknownStatus is an exit with code 255.
const unknownStatus = syscall.WaitStatus(255 << 8)

// foreignStatus reads how a process ended that is another's child. As long as
// its parent has not asked, /proc has it; afterwards the pidfd, since Linux
// 6.15.
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
		// It was reaped in between, and then the pidfd knows.
	}
	return unknownStatus, true
}

// parseZombie is the wait status of a process that has ended, field 52.
func parseZombie(stat []byte) (syscall.WaitStatus, bool) {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const field = 52 - 3 // the first one here is the third
	if len(fields) <= field || string(fields[0]) != "Z" {
		return 0, false
	}
	n, err := strconv.Atoi(string(fields[field]))
	return syscall.WaitStatus(n), err == nil
}

// forget closes what a process that has exited still holds.
func (p *process) forget() {
	<-p.exited
	if p.pidfd != nil {
		p.pidfd.Close()
	}
}

// sweepOrphans reaps children that nobody knows, whenever some child exits.
func (r *reaper) sweepOrphans() {
	sigchld := make(chan os.Signal, 1)
	signal.Notify(sigchld, syscall.SIGCHLD)
	go func() {
		for range sigchld {
			r.mu.Lock()
			r.sweep()
			r.mu.Unlock()
		}
	}()
}

// sweep is called with the lock held.
func (r *reaper) sweep() {
	if r.due = r.holds > 0; r.due {
		return
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, task := range tasks {
		children, err := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		if err != nil {
			continue
		}
		for _, f := range bytes.Fields(children) {
			pid, err := strconv.Atoi(string(f))
			if _, known := r.known[pid]; err == nil && !known {
				syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
			}
		}
	}
}

// privatePids reports whether an OCI config.json asks for a pid namespace of
// the container's own. The file may be large, so it is not decoded: anything
// that does not look like such a namespace is none.
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

// bundlePrivatePids looks into the bundle without taking the file onto the
// heap, where it would stay.
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

// inheritNoSignals undoes what whoever started the daemon had ignored: it would
// be ignored in the container too. Some launchers leave even the C library's
// own signals 32 and 33 so.
func inheritNoSignals() {
	for sig := uintptr(1); sig <= 64; sig++ {
		var now, none [4]uintptr // handler, flags, restorer, mask
		_, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&now)), 8, 0, 0)
		if errno == 0 && now[0] == 1 { // SIG_IGN
			syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&none)), 0, 8, 0, 0)
		}
	}
}

// ignoreSignals keeps signals for people and sessions from ending the shim,
// which would orphan its container. It goes around os/signal: signal.Notify
// takes two threads, and what signal.Ignore ignores stays ignored in children
// and so in the container. The Go runtime does not know of this change and, as
// it installed handlers for these signals, resets them in every child.
func ignoreSignals() {
	inheritNoSignals()
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM,
		syscall.SIGUSR1, syscall.SIGUSR2} {
		setSignal(sig, sigIgnore)
	}
}

// SIG_DFL and SIG_IGN.
const (
	sigDefault = 0
	sigIgnore  = 1
)

// setSignal sets what a signal does, without the Go runtime's knowledge.
func setSignal(sig syscall.Signal, handler uintptr) {
	// struct sigaction as the kernel has it, with no flags and an empty mask.
	action := [4]uintptr{handler}
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(sig),
		uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0); errno != 0 {
		logf("set %v: %v", sig, errno)
	}
}
