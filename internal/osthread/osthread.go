// SPDX-License-Identifier: Apache-2.0

// Package osthread runs functions on threads whose namespaces, working directory
// or root they change.
package osthread

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// errUnfinished is the error of a function that left by runtime.Goexit.
var errUnfinished = errors.New("the function on a thread of its own did not return")

// Run calls f on a thread of its own, which ends when f returns: whatever f
// changed of the thread ends with it. f may only use what stays on its thread.
// The error is that of f.
func Run(f func() error) error {
	return apart(func() (bool, error) { return false, f() })
}

// RunInNetns calls f on a thread whose network namespace f may change. The thread
// is moved back afterwards and used again; if it can't be moved back, it ends. The
// error is that of f, or says that the thread's namespace can't be opened.
func RunInNetns(f func() error) error {
	return apart(func() (bool, error) {
		ns, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return true, fmt.Errorf("network namespace of the thread: %w", err)
		}
		defer ns.Close()
		err = f()
		return unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET) == nil, err
	})
}

// InNetns calls f on a thread in the network namespace ns, as RunInNetns does.
// Sockets that f opens belong to the namespace.
func InNetns(ns *os.File, f func() error) error {
	return RunInNetns(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", ns.Name(), err)
		}
		return f()
	})
}

// apart calls f on a locked thread, which is unlocked if f says that it can be
// used again and ends with its goroutine otherwise. It is never the process's
// main thread. Go parks the main thread instead of ending it, so what f changed
// would last as long as the process: a container's namespace, and with it the
// container's mounts and interfaces. And /proc/self shows the main thread's
// namespaces, root and working directory.
func apart(f func() (clean bool, err error)) error {
	done := make(chan error, 1)
	go func() {
		err := errUnfinished
		defer func() { done <- err }()
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			err = apart(f) // on another thread, as the main thread is locked
			runtime.UnlockOSThread()
			return
		}
		var clean bool
		if clean, err = f(); clean {
			runtime.UnlockOSThread()
		}
	}()
	return <-done
}
