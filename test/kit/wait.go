// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Eventually polls until holds returns true, and fails the test after a minute.
// It is for conditions that no event reports; what names the condition. The pause
// between two polls grows from 10 ms to 80 ms, because a poll may run a command.
func Eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	late := time.After(time.Minute)
	for pause := 10 * time.Millisecond; !holds(); pause = min(pause*5/4, 80*time.Millisecond) {
		select {
		case <-time.After(pause):
		case <-late:
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// WaitGrown waits until a file has a size. It returns false if the process of
// the pidfd exits before.
func WaitGrown(t testing.TB, path string, size int64, pidfd int) bool {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY); err != nil {
		t.Fatal(err)
	}
	var buf [4096]byte
	for {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Size() >= size {
			return true
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(pidfd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 60_000); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		if fds[1].Revents != 0 {
			return false
		}
		unix.Read(fd, buf[:])
	}
}
