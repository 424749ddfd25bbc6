package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/container"
	"holdfast/internal/shim/proto"
)

// A container whose shim was killed runs on, and gets a new one (replace.go).
// Where none can be had the daemon watches its process and can stop it through
// the OCI runtime.

// alive reports whether the process of a record lives: same pid, same start
// time, same boot, and no zombie.
func alive(rec proto.State) bool {
	status, there := processOf(rec)
	return there && status != "Z" && status != "X"
}

// present is alive, or a zombie, which still has its exit code.
func present(rec proto.State) bool {
	_, there := processOf(rec)
	return there
}

// processOf is the status of a record's process, in the letters of proc(5).
func processOf(rec proto.State) (status string, there bool) {
	if rec.Pid <= 0 || !sameBoot(rec) {
		return "", false
	}
	stat, err := proto.ReadFile("/proc/" + strconv.Itoa(rec.Pid) + "/stat")
	if err != nil {
		return "", false
	}
	// The name in field 2 may hold anything; the fields after it count.
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return "", false
	}
	n := 0
	for field := range bytes.FieldsSeq(stat[i+1:]) {
		switch n {
		case 0:
			status = string(field)
		case 19:
			start, err := strconv.ParseUint(string(field), 10, 64)
			return status, err == nil && start == rec.PidStart
		}
		n++
	}
	return "", false
}

// watchProcess waits for the end of a process that has no shim.
func (a *actor) watchProcess(rec proto.State) {
	fd, err := unix.PidfdOpen(rec.Pid, unix.PIDFD_NONBLOCK)
	if err == nil {
		if alive(rec) {
			f := os.NewFile(uintptr(fd), "pidfd")
			// A pidfd is readable once its process has ended; a read only waits.
			raw, _ := f.SyscallConn()
			_ = raw.Read(func(fd uintptr) bool {
				p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
				n, err := unix.Poll(p, 0)
				return n > 0 || err != nil && err != unix.EINTR
			})
			f.Close()
		} else {
			unix.Close(fd)
		}
	}
	a.post(func() {
		if a.shim != nil || !a.state.Alive() {
			return
		}
		a.lose()
		a.publish()
		go a.finishLost(false)
		a.unpark()
	})
}

// signalUnshimmed sends a signal to a container's process without its shim.
func (a *actor) signalUnshimmed(sig syscall.Signal) error {
	notRunning := conflict("cannot kill container: %s: container %s is not running", a.spec.Name, a.id)
	if !alive(a.rec) {
		return notRunning
	}
	fd, err := unix.PidfdOpen(a.rec.Pid, 0)
	if err != nil {
		return fmt.Errorf("kill %s: %w", a.spec.Name, err)
	}
	defer unix.Close(fd)
	if !alive(a.rec) { // it may have ended before the descriptor was there
		return notRunning
	}
	return unix.PidfdSendSignal(fd, sig, nil, 0)
}

// haltUnshimmed stops a container that has no shim, in the loop.
func (a *actor) haltUnshimmed(how proto.Stop) {
	sig := syscall.Signal(how.Signal)
	if sig == 0 {
		sig = a.stopSignal()
	}
	wait := time.Duration(how.Timeout) * time.Second
	if how.Default {
		wait = 10 * time.Second
		if t := a.spec.StopTimeout; t != nil {
			wait = time.Duration(*t) * time.Second
		}
	}
	if err := a.signalUnshimmed(sig); err != nil {
		a.log.Warn("the stop signal did not arrive", "error", err)
	}
	if wait < 0 {
		return
	}
	time.AfterFunc(wait, func() {
		a.post(func() {
			if a.state == container.Stopping && a.shim == nil {
				if err := a.signalUnshimmed(syscall.SIGKILL); err != nil {
					a.log.Warn("SIGKILL did not arrive", "error", err)
				}
				// A frozen process takes no signal; the runtime thaws it.
				go func() {
					if err := a.e.killUnshimmed(a.id); err != nil {
						a.log.Warn("the runtime could not kill the container", "error", err)
					}
				}()
			}
		})
	})
}

// killUnshimmed deletes what the OCI runtime still knows of a container, and
// kills its processes. A container that it does not know is fine.
func (e *Engine) killUnshimmed(id string) error {
	if e.observes.Load() {
		return nil
	}
	a, err := e.index.find(id)
	if err != nil {
		return nil
	}
	v := a.view.Load()
	rt, err := e.runtime(v.spec)
	if err != nil {
		return err
	}
	if _, err := os.Stat(e.runtimeState(v.spec)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	out, err := exec.CommandContext(context.Background(), rt.Path, append(rt.Args, "delete", "--force", id)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s delete: %w: %s", rt.Path, err, bytes.TrimSpace(out))
	}
	return nil
}
