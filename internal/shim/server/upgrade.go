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

	"holdfast/internal/shim/proto"
)

// A shim goes on as another binary by execve: the process stays, and with it
// its number, its children and its descriptors. What is in memory travels as an
// image (image.go) in a memfd. Everything stands still for that moment (see
// still.go): what others send waits in the kernel.
//
// Until execve succeeds the shim can go on as it was. Afterwards the new binary
// can, by an execve back, until it has begun to act on the image. Should it fail
// later it is a shim that died, and the daemon starts one that adopts.

const (
	// imageEnv names the memfd's descriptor, refusedEnv the reason why the
	// binary that the shim became did not take it.
	imageEnv   = "HOLDFAST_SHIM_IMAGE"
	refusedEnv = "HOLDFAST_SHIM_REFUSED"

	// stillTime is how long what is under way may take before the upgrade is
	// given up.
	stillTime = 10 * time.Second
	// checkTime is how long the binary may take to say what it is.
	checkTime = 5 * time.Second
)

// upgrade begins to go on as another binary. The answer comes from that one.
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
		err := s.become(c, id, req.Binary)
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
		return conflict("the container has not started: there is nothing to go on with")
	default:
		return conflict("the container has ended: its shim is about to leave")
	}
}

// become replaces the program. It returns only when that failed, and everything
// goes on as before.
func (s *Shim) become(c *conn, id uint64, binary string) error {
	if err := s.check(binary); err != nil {
		return err
	}
	if !s.gate.close(stillTime) {
		return conflict("the shim has been busy for %v: try again", stillTime)
	}
	defer s.gate.open()
	if err := s.upgradable(); err != nil {
		return err
	}
	motion.Lock()
	defer motion.Unlock()
	img, err := s.capture(c, id)
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	err = img.exec(binary, s.boot.ID, os.Environ())
	return fmt.Errorf("upgrade: run %s: %w", binary, err)
}

// check asks the binary whether it can go on with this shim's image.
func (s *Shim) check(binary string) error {
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
	p, err := s.reaper.spawn(binary, []string{"holdfast-shim", "--takes-image", strconv.Itoa(imageSchema)},
		&syscall.ProcAttr{Dir: "/", Env: s.runtime.env, Files: []uintptr{uintptr(null), uintptr(fds[1]), uintptr(null)}})
	unix.Close(fds[1])
	if err != nil {
		return invalid("upgrade: %s can't be run: %v", binary, err)
	}
	timer := time.NewTimer(checkTime)
	defer timer.Stop()
	select {
	case <-p.exited:
	case <-timer.C:
		p.signal(syscall.SIGKILL)
	}
	p.forget()
	buf := make([]byte, 256)
	n, _ := unix.Read(fds[0], buf)
	said := strings.TrimSpace(string(buf[:max(n, 0)]))
	switch {
	case !strings.HasPrefix(said, "holdfast-shim "):
		return invalid("upgrade: %s is no shim that can be upgraded to", binary)
	case p.exitCode() != 0:
		return invalid("upgrade: %s does not take over from this one: its state has number %d", said, imageSchema)
	}
	return nil
}

// TakesImage answers check for the binary that is asked: whether it goes on with
// images of this number.
func TakesImage(number string) bool {
	n, err := strconv.Atoi(number)
	return err == nil && n >= 1 && n <= imageSchema
}

// exec runs a program in this process, which gets the image's descriptors. It
// returns only with an error, and then all is as before.
func (img *image) exec(path, id string, env []string) error {
	fd, err := img.store()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	keep := func(on bool) {
		flag := 0
		if !on {
			flag = unix.FD_CLOEXEC
		}
		for _, n := range append(img.descriptors(), &fd) {
			if *n >= 0 {
				unix.FcntlInt(uintptr(*n), unix.F_SETFD, flag)
			}
		}
	}
	next := []string{imageEnv + "=" + strconv.Itoa(fd)}
	for _, v := range env {
		if !strings.HasPrefix(v, imageEnv+"=") {
			next = append(next, v)
		}
	}
	keep(true)
	// A Go program that finds these two ignored leaves them so, in its children
	// too. All other signals stay ignored until it has its own handlers.
	setSignal(syscall.SIGHUP, sigDefault)
	setSignal(syscall.SIGINT, sigDefault)
	err = syscall.Exec(path, []string{"holdfast-shim", id}, next)
	ignoreSignals()
	keep(false)
	return err
}

// resume goes on from the image that the program before left. It returns an
// error only where there is no way back either.
func resume(release, env string) (*Shim, error) {
	os.Unsetenv(imageEnv)
	refused := os.Getenv(refusedEnv)
	os.Unsetenv(refusedEnv)
	fd, err := strconv.Atoi(env)
	if err != nil {
		return nil, fmt.Errorf("%s=%s: %w", imageEnv, env, err)
	}
	img, err := loadImage(fd)
	if err != nil {
		return nil, err
	}
	s, err := img.shim(release, refused != "")
	if err != nil && refused == "" && img.Program >= 0 {
		// Nothing was touched yet.
		logf("the state of the shim before can't be gone on with: %v", err)
		back := "/proc/self/fd/" + strconv.Itoa(img.Program)
		err = img.exec(back, img.Boot.ID, append(os.Environ(), refusedEnv+"="+err.Error()))
	}
	if err != nil {
		return nil, err
	}
	img.begin(s, refused)
	return s, nil
}
