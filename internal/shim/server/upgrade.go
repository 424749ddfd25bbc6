// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/handover"
	"holdfast/internal/shim/proto"
)

// A shim is upgraded by re-exec: execve keeps the process, and with it its pid, its
// children and its descriptors. The state in memory is handed over in a memfd
// (package handover; handover.go has the sections). The shim is quiescent during the re-exec (quiesce.go), and what
// peers send meanwhile waits in the kernel.
//
// If execve fails the shim continues as it was. If the next binary can't use the
// state, it execs back; this is possible until it starts to act on the state. A
// later failure is like any other death of a shim: the daemon starts a new shim,
// which adopts the container.

const (
	// quiesceTime bounds how long an upgrade waits for operations in progress. After
	// that it fails.
	quiesceTime = 10 * time.Second
	// checkBinaryTime bounds how long the binary may take to answer --takes-image.
	checkBinaryTime = 5 * time.Second
)

// upgrade starts a re-exec of another binary. On success that binary answers the
// request.
func (s *Shim) upgrade(c *conn, id uint64, req proto.Upgrade) error {
	if !filepath.IsAbs(req.Binary) {
		return invalid("upgrade: the binary's path %q is not absolute", req.Binary)
	}
	if err := s.upgradable(); err != nil {
		return err
	}
	if !s.upgrading.CompareAndSwap(false, true) {
		return conflict("the shim is being upgraded already")
	}
	go func() {
		err := s.reexec(c, id, req.Binary)
		s.upgrading.Store(false)
		c.answer(id, nil, err)
		c.answered()
	}()
	return nil
}

func (s *Shim) upgradable() error {
	switch st := s.rec.snapshot(); st.Status {
	case proto.StatusRunning, proto.StatusPaused, proto.StatusRestarting:
		return nil
	case proto.StatusCreated:
		return conflict("the container has not started: there is no state to hand over")
	default:
		return conflict("the container has ended: its shim is about to exit")
	}
}

// reexec replaces the program. It returns only on failure; the shim then continues
// as before.
func (s *Shim) reexec(c *conn, id uint64, binary string) error {
	if err := s.checkBinary(binary); err != nil {
		return err
	}
	if !s.gate.close(quiesceTime) {
		return conflict("the shim has been busy for %v: try again", quiesceTime)
	}
	defer s.gate.open()
	if err := s.upgradable(); err != nil {
		return err
	}
	motion.Lock()
	defer motion.Unlock()
	h := s.capture(c, id)
	err := h.execve(binary, s.boot.ID, os.Environ())
	if h.Program >= 0 {
		unix.Close(h.Program)
	}
	return fmt.Errorf("upgrade: run %s: %w", binary, err)
}

// checkBinary runs the binary to ask whether it accepts this shim's handover state.
func (s *Shim) checkBinary(binary string) error {
	s.gate.enter()
	defer s.gate.leave()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return os.NewSyscallError("pipe", err)
	}
	defer unix.Close(fds[0])
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(fds[1])
		return os.NewSyscallError("open "+os.DevNull, err)
	}
	defer unix.Close(null)
	p, err := s.reaper.spawn(binary, []string{"holdfast-shim", handover.AcceptFlag, strconv.Itoa(handover.Schema)},
		&syscall.ProcAttr{Dir: "/", Env: s.runtime.env, Files: []uintptr{uintptr(null), uintptr(fds[1]), uintptr(null)}})
	unix.Close(fds[1])
	if err != nil {
		return invalid("upgrade: %s can't be run: %v", binary, err)
	}
	timer := time.NewTimer(checkBinaryTime)
	defer timer.Stop()
	select {
	case <-p.exited:
	case <-timer.C:
		p.signal(syscall.SIGKILL)
	}
	p.closePidfd()
	buf := make([]byte, 256)
	n, _ := unix.Read(fds[0], buf)
	said := strings.TrimSpace(string(buf[:max(n, 0)]))
	switch {
	case !strings.HasPrefix(said, "holdfast-shim "):
		return invalid("upgrade: %s is no shim, or one of a release without upgrades", binary)
	case p.exitCode() != 0:
		return invalid("upgrade: %s does not take over from this one: the handover state has version %d", said, handover.Schema)
	}
	return nil
}

// execve runs a program in this process and lets it inherit the descriptors of the
// state. It returns only on failure, and then nothing has changed.
func (h *handoverState) execve(path, id string, env []string) error {
	fd, err := handover.Write(h)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	inherited := append(h.allDescriptors(), &fd)
	nextEnv := []string{handover.Env + "=" + strconv.Itoa(fd)}
	for _, v := range env {
		if !strings.HasPrefix(v, handover.Env+"=") {
			nextEnv = append(nextEnv, v)
		}
	}
	handover.Inherit(inherited, true)
	// SIGHUP and SIGINT are reset: a Go program that starts with these two ignored
	// keeps them ignored, and so do its children. All other signals stay ignored
	// until the next binary installs its handlers.
	setSignal(syscall.SIGHUP, sigDefault)
	setSignal(syscall.SIGINT, sigDefault)
	err = syscall.Exec(path, []string{"holdfast-shim", id}, nextEnv)
	ignoreSignals()
	handover.Inherit(inherited, false)
	return err
}

// resumeFromHandover continues from the state that the previous binary left. It
// returns an error only when execing back is impossible too.
func resumeFromHandover(release, env string) (*Shim, error) {
	os.Unsetenv(handover.Env)
	refused := os.Getenv(handover.RefusedEnv)
	os.Unsetenv(handover.RefusedEnv)
	fd, err := strconv.Atoi(env)
	if err != nil {
		return nil, fmt.Errorf("%s=%s: %w", handover.Env, env, err)
	}
	h, err := loadHandover(fd)
	if err != nil {
		return nil, err
	}
	s, err := h.buildShim(release, refused != "")
	if err != nil && refused == "" && h.Program >= 0 {
		// buildShim had no side effects, so the previous binary can continue.
		logf("the handover state of the previous binary can't be used: %v", err)
		back := "/proc/self/fd/" + strconv.Itoa(h.Program)
		err = h.execve(back, h.Boot.ID, append(os.Environ(), handover.RefusedEnv+"="+err.Error()))
	}
	if err != nil {
		return nil, err
	}
	h.restore(s, refused)
	return s, nil
}
