package bench

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// netns is a network namespace; the zero value is that of the test.
type netns struct{ file *os.File }

// run calls fn in the namespace: what it opens and the processes that it
// starts belong there.
func (n netns) run(fn func() error) error {
	if n.file == nil {
		return fn()
	}
	return aside(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return fn()
	})
}

// newNetns makes an empty namespace. It goes with its last process and file.
func newNetns() (n netns, err error) {
	err = aside(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		n.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return n, err
}

// aside calls fn in a thread of its own, which comes back to where it was. One
// that can't is not used again.
func aside(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		back, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- err
			return
		}
		defer back.Close()
		err = fn()
		if unix.Setns(int(back.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}
