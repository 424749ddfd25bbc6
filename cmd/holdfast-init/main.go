// Command holdfast-init is the first process of containers that were made with
// --init where the host has no tini: it starts the container's command, passes
// signals on to it, reaps what becomes an orphan, and ends as it ends. It is
// mounted into the container, so it is static and knows nothing else.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"unsafe"
)

func main() {
	args := os.Args[1:]
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "usage: holdfast-init [--] COMMAND [ARG...]")
		os.Exit(125)
	}
	os.Exit(run(args))
}

// run starts the command and returns its exit code as a shell tells it.
func run(args []string) int {
	// Before the command starts, so that no signal is lost.
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)

	path, err := exec.LookPath(args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, "holdfast-init:", err)
		if errors.Is(err, fs.ErrPermission) {
			return 126
		}
		return 127
	}
	pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2},
		Sys: &syscall.SysProcAttr{Setpgid: true, Foreground: terminal(0), Ctty: 0},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "holdfast-init:", args[0]+":", err)
		return 126
	}
	for s := range signals {
		sig, ok := s.(syscall.Signal)
		switch {
		case !ok, sig == syscall.SIGURG, sig == syscall.SIGTTIN, sig == syscall.SIGTTOU:
			// SIGURG is the Go runtime's own; the terminal's two would stop us.
		case sig == syscall.SIGCHLD:
			if code, done := reap(pid); done {
				return code
			}
		default:
			_ = syscall.Kill(pid, sig) // it may be gone; SIGCHLD tells
		}
	}
	return 0
}

// reap waits for all that has ended. done says that the command is among it.
func reap(command int) (code int, done bool) {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		switch {
		case err == syscall.EINTR:
			continue
		case err != nil || pid <= 0:
			return code, done
		case pid == command && ws.Signaled():
			code, done = 128+int(ws.Signal()), true
		case pid == command:
			code, done = ws.ExitStatus(), true
		}
	}
}

// terminal reports whether a descriptor is one (ioctl_tty(2), TIOCGPGRP).
func terminal(fd uintptr) bool {
	var pgrp int32
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCGPGRP, uintptr(unsafe.Pointer(&pgrp)))
	return errno == 0
}
