// SPDX-License-Identifier: Apache-2.0

// Command holdfast-init is the first process of a container created with --init,
// if the host has no tini. It starts the container's command, forwards signals to
// it, reaps orphans, and exits with the command's exit code. It is mounted into
// the container, so it is static and has no dependencies.
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

// run starts the command and returns its exit code as a shell reports it: 128+n for
// signal n.
func run(args []string) int {
	// This precedes the start of the command, so that no signal is lost.
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
			// The Go runtime uses SIGURG itself. SIGTTIN and SIGTTOU would stop this
			// process.
		case sig == syscall.SIGCHLD:
			if code, done := reap(pid); done {
				return code
			}
		default:
			_ = syscall.Kill(pid, sig) // if it has exited, SIGCHLD follows
		}
	}
	return 0
}

// reap reaps all children that have exited. done reports that the command is one of
// them.
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

// terminal reports whether a descriptor is a terminal (ioctl_tty(2), TIOCGPGRP).
func terminal(fd uintptr) bool {
	var pgrp int32
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCGPGRP, uintptr(unsafe.Pointer(&pgrp)))
	return errno == 0
}
