// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"os"
	"testing"
)

// Two data roots on different disks may have lock files with the same inode number.
func TestLockOfAnotherFileSystemIsNotThisOne(t *testing.T) {
	const locks = "1: FLOCK  ADVISORY  WRITE 1234 fe:01:5678 0 EOF\n2: POSIX  ADVISORY  WRITE 9 00:1b:77 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 9 00:1b:78 0 EOF\n"
	for _, c := range []struct {
		device string
		inode  uint64
		want   bool
	}{
		{"fe:01", 5678, true}, {"fe:02", 5678, false}, {"fe:01", 678, false}, {"", 5678, true}, {"00:1b", 77, false}, {"00:1b", 78, false},
	} {
		if got := lockedIn(locks, c.device, c.inode); got != c.want {
			t.Errorf("%s:%d: %v", c.device, c.inode, got)
		}
	}
	// Both kinds of names of a device agree.
	dir := t.TempDir()
	l, err := Acquire(t.Context(), dir+"/data", dir+"/exec")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	f, err := os.Open(dir + "/data/" + LockFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if device := fileSystemOf(f); device == "" || !Held(dir+"/data") {
		t.Errorf("on %q the lock is not seen", device)
	}
}
