// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// Takeover starts another daemon with --takeover, and waits until it has taken
// over from the running one. The old process may continue for the streams that
// it serves; Predecessors returns it.
func (d *Daemon) Takeover(env ...string) {
	d.t.Helper()
	if err := d.TryTakeover(env...); err != nil {
		d.t.Fatalf("%v\n%s", err, d.tail())
	}
}

// TryTakeover is Takeover, but returns an error with the new daemon's output if
// that daemon ends instead. The old daemon then continues. env has further
// variables for the new one.
func (d *Daemon) TryTakeover(env ...string) error {
	if !d.Running() {
		return errors.New("there is no daemon to take over from")
	}
	d.drainNotify()
	cmd := d.Command()
	cmd.Args = append(cmd.Args, "--takeover")
	cmd.Env = append(cmd.Env, env...)
	output, err := d.startLogged(cmd, cmd.Start)
	if err != nil {
		return err
	}
	d.mu.Lock()
	before, beforeExited := d.cmd, d.exited
	d.cmd, d.exited = cmd, awaitExit(cmd.Process.Pid)
	d.mu.Unlock()
	// A daemon that refused the handover also sends READY=1, so wait for the
	// new process's pid.
	if err := d.waitNotify(fmt.Sprintf("MAINPID=%d", cmd.Process.Pid)); err != nil {
		cmd.Process.Kill()
		<-d.Exited()
		d.Reap()
		d.mu.Lock()
		d.cmd, d.exited = before, beforeExited
		d.mu.Unlock()
		return fmt.Errorf("the new daemon ended: %w: %s", err, output())
	}
	d.leave(before, beforeExited)
	return nil
}

// Became records that a process, which the running daemon has started for an
// upgrade, is now the daemon.
func (d *Daemon) Became(pid int) {
	d.t.Helper()
	p, err := os.FindProcess(pid)
	if err != nil {
		d.t.Fatal(err)
	}
	d.mu.Lock()
	before, beforeExited := d.cmd, d.exited
	d.cmd, d.exited = &exec.Cmd{Process: p}, awaitExit(pid)
	d.mu.Unlock()
	d.leave(before, beforeExited)
}

// leave records a process that is no longer the daemon, and reaps it when it
// ends.
func (d *Daemon) leave(cmd *exec.Cmd, exited <-chan struct{}) {
	p := &Predecessor{Pid: cmd.Process.Pid, Exited: make(chan struct{})}
	d.mu.Lock()
	d.predecessors = append(d.predecessors, p)
	d.mu.Unlock()
	go func() {
		<-exited
		cmd.Wait()
		p.Code = cmd.ProcessState.ExitCode()
		close(p.Exited)
	}()
}

// Predecessor is a process that was the daemon.
type Predecessor struct {
	Pid    int
	Code   int           // valid once Exited is closed
	Exited chan struct{} // closed when it has ended and was reaped
}

// Predecessors returns the processes that were the daemon before, oldest first.
func (d *Daemon) Predecessors() []*Predecessor {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]*Predecessor(nil), d.predecessors...)
}

// awaitExit returns a channel that is closed when a process has ended. A child is
// not reaped. A process that the daemon has started becomes a child only when that
// daemon has ended.
func awaitExit(pid int) chan struct{} {
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return
		}
		defer unix.Close(fd)
		for WaitReadable(fd, patience) != nil {
			continue
		}
	}()
	return exited
}
