package server

import (
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// process is a child, by birth or by adoption as its subreaper.
type process struct {
	pid    int
	pidfd  int // -1 when it was gone before one could be opened
	exited chan struct{}
	status syscall.WaitStatus // valid once exited is closed
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
	if p.pidfd < 0 {
		return syscall.ESRCH
	}
	return unix.PidfdSendSignal(p.pidfd, sig, nil, 0)
}

// reaper is the only one that waits for children. A process that the runtime
// leaves behind may end before the shim has read its number from the pid file;
// while someone holds the reaper, the statuses of unknown children are kept.
type reaper struct {
	mu     sync.Mutex
	known  map[int]*process
	holds  int
	strays map[int]syscall.WaitStatus // ended, unknown; only while holds > 0
}

func newReaper() *reaper {
	r := &reaper{known: map[int]*process{}, strays: map[int]syscall.WaitStatus{}}
	sigchld := make(chan os.Signal, 1)
	signal.Notify(sigchld, syscall.SIGCHLD)
	go func() {
		for range sigchld {
			r.reap()
		}
	}()
	return r
}

func (r *reaper) reap() {
	// The lock spans wait4 so that a number can't be given to a new process
	// between adopt's look at strays and its pidfd_open.
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if p := r.known[pid]; p != nil {
			delete(r.known, pid)
			p.status = ws
			close(p.exited)
		} else if r.holds > 0 {
			r.strays[pid] = ws
		}
	}
}

// hold keeps the statuses of unknown children until release.
func (r *reaper) hold() {
	r.mu.Lock()
	r.holds++
	r.mu.Unlock()
}

func (r *reaper) release() {
	r.mu.Lock()
	if r.holds--; r.holds == 0 {
		clear(r.strays)
	}
	r.mu.Unlock()
}

// adopt watches a child that the runtime left behind. The caller holds the
// reaper since before the runtime was called.
func (r *reaper) adopt(pid int) *process {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := &process{pid: pid, pidfd: -1, exited: make(chan struct{})}
	if ws, ok := r.strays[pid]; ok {
		p.status = ws
		close(p.exited)
		return p
	}
	if fd, err := unix.PidfdOpen(pid, 0); err == nil {
		p.pidfd = fd
	}
	r.known[pid] = p
	return p
}

// forget closes what a process that has exited still holds.
func (p *process) forget() {
	<-p.exited
	if p.pidfd >= 0 {
		unix.Close(p.pidfd)
		p.pidfd = -1
	}
}

// spawn starts a child of the shim's own.
func (r *reaper) spawn(path string, argv []string, attr *syscall.ProcAttr) (*process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return nil, os.NewSyscallError("exec "+path, err)
	}
	p := &process{pid: pid, pidfd: -1, exited: make(chan struct{})}
	r.known[pid] = p
	return p, nil
}
