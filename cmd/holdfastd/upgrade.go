// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"holdfast/internal/api"
	"holdfast/internal/errs"
	"holdfast/internal/version"
)

// upgrades are the handovers requested through the API, by the pid of the
// process that was started for each.
type upgrades struct {
	mu    sync.Mutex
	asked map[int]*upgrade
}

// askedBy removes and returns the request for which a successor was started. It
// is nil if the successor was started by hand.
func (d *daemon) askedBy(pid int) *upgrade {
	d.upgrades.mu.Lock()
	defer d.upgrades.mu.Unlock()
	u := d.upgrades.asked[pid]
	delete(d.upgrades.asked, pid)
	return u
}

// Upgrade starts another daemon with this one's arguments and hands over to it.
func (d *daemon) Upgrade(ctx context.Context, o api.UpgradeOptions) (api.Upgraded, error) {
	if d.control == nil {
		return api.Upgraded{}, errdefs.ErrFailedPrecondition.WithMessage("this daemon can't hand over: it has no handoff socket, see its log")
	}
	wait := defaultWait
	switch {
	case o.Wait < 0:
		return api.Upgraded{}, errdefs.ErrInvalidArgument.WithMessage("wait must be 0 or more seconds")
	case o.Wait > 0:
		wait = time.Duration(o.Wait) * time.Second
	}
	binary := o.Binary
	if binary == "" {
		binary = strings.TrimSuffix(d.binary, " (deleted)") // an upgrade may have replaced the file
	}
	if !filepath.IsAbs(binary) {
		return api.Upgraded{}, errs.Invalid("binary %q: want an absolute path", binary)
	}
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(a string) bool { return a == "--takeover" || strings.HasPrefix(a, "--takeover=") })
	if err := tryBinary(ctx, binary, args); err != nil {
		return api.Upgraded{}, err
	}

	result := make(chan upgraded, 1)
	d.upgrades.mu.Lock()
	pid, pidfd, err := d.spawn(binary, append(args, "--takeover"))
	if err != nil {
		d.upgrades.mu.Unlock()
		return api.Upgraded{}, errs.Invalid("start %s: %v", binary, err)
	}
	if d.upgrades.asked == nil {
		d.upgrades.asked = map[int]*upgrade{}
	}
	d.upgrades.asked[pid] = &upgrade{wait: wait, result: result}
	d.upgrades.mu.Unlock()

	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer pidfd.Close()
		awaitExit(pidfd)
	}()
	select {
	case r := <-result:
		return answerOf(r)
	case <-ended:
		if d.askedBy(pid) == nil {
			// The main loop handled the handover of this process. It sends the
			// result when it is done, also after taking everything back.
			return answerOf(<-result)
		}
		return api.Upgraded{}, errs.Unmet("the new daemon, process %d, ended before it could take over: see the daemon's log", pid)
	}
}

func answerOf(r upgraded) (api.Upgraded, error) {
	if r.err != nil {
		return api.Upgraded{}, fmt.Errorf("the upgrade failed, the daemon is the one from before: %w", r.err)
	}
	return api.Upgraded{Pid: r.pid, Version: r.release, Before: version.Version, Pause: r.pause}, nil
}

// tryBinary checks whether a binary would start with these arguments, before
// anything else is done with it.
func tryBinary(ctx context.Context, binary string, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append(slices.Clone(args), "--takeover", "--validate")...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if err == nil && !strings.Contains(out.String(), "configuration OK") {
		err = errors.New("it is no holdfastd")
	}
	if err == nil {
		return nil
	}
	said := strings.TrimSpace(out.String())
	if len(said) > 2000 {
		said = said[:2000] + "…"
	}
	if said != "" {
		said = ": " + said
	}
	return errs.Invalid("%s can't be the next daemon: %v%s", binary, err, said)
}

// spawn starts a process beside this one, as a child of this one's parent. The
// service manager has to notice its end, even while this process still serves a
// stream.
func (d *daemon) spawn(binary string, args []string) (pid int, pidfd *os.File, err error) {
	try := func(flags uintptr) error {
		fd := -1
		cmd := exec.Command(binary, args...)
		cmd.Env, cmd.Stdout, cmd.Stderr = d.environ, os.Stdout, os.Stderr
		cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: flags, PidFD: &fd}
		if err := cmd.Start(); err != nil {
			return err
		}
		pid = cmd.Process.Pid
		_ = cmd.Process.Release()
		if fd < 0 {
			return errors.New("the kernel does not support pidfds")
		}
		if err := unix.SetNonblock(fd, true); err != nil {
			return err
		}
		pidfd = os.NewFile(uintptr(fd), "pidfd")
		return nil
	}
	err = try(unix.CLONE_PARENT)
	if errors.Is(err, unix.EINVAL) {
		err = try(0) // the first process of a PID namespace has no parent
	}
	return pid, pidfd, err
}

// awaitExit waits until a process has ended.
func awaitExit(pidfd *os.File) {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}
