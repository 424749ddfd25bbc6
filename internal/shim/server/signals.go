// SPDX-License-Identifier: Apache-2.0

package server

import (
	"syscall"
	"unsafe"
)

// inheritNoSignals resets signals that were ignored when the daemon was started:
// otherwise they would be ignored in the container too. Some launchers ignore even
// the C library's own signals 32 and 33.
func inheritNoSignals() {
	for sig := uintptr(1); sig <= 64; sig++ {
		var now, none [4]uintptr // handler, flags, restorer, mask
		_, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&now)), 8, 0, 0)
		if errno == 0 && now[0] == 1 { // SIG_IGN
			syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&none)), 0, 8, 0, 0)
		}
	}
}

// ignoreSignals keeps signals that people and sessions send from ending the shim,
// which would orphan its container. It bypasses os/signal: signal.Notify takes two
// threads, and a signal ignored by signal.Ignore stays ignored in children and so
// in the container. The Go runtime does not notice this change. As it installed
// handlers for these signals, it resets them in every child.
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

// setSignal sets the disposition of a signal behind the Go runtime's back.
func setSignal(sig syscall.Signal, handler uintptr) {
	// The kernel's struct sigaction, with no flags and an empty mask.
	action := [4]uintptr{handler}
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(sig),
		uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0); errno != 0 {
		logf("set the action of signal %v: %v", sig, errno)
	}
}
