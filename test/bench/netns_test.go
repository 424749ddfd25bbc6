// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"os"

	"golang.org/x/sys/unix"

	"holdfast/internal/osthread"
)

// netns is a network namespace; the zero value is that of the test.
type netns struct{ file *os.File }

// run calls fn in the namespace. Sockets that fn opens and processes that it
// starts belong to the namespace.
func (n netns) run(fn func() error) error {
	if n.file == nil {
		return fn()
	}
	return osthread.RunInNetns(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return fn()
	})
}

// newNetns creates an empty namespace. The kernel removes it with its last
// process and descriptor.
func newNetns() (n netns, err error) {
	err = osthread.RunInNetns(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		n.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return n, err
}
