// SPDX-License-Identifier: Apache-2.0

// Package log writes the shim's log, for people to read. It owns descriptor 2,
// which is the file shim.log in the run directory. It imports nothing of the shim.
package log

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// limit is the size in bytes above which the log is truncated. The log is in memory
// (the run directory is a tmpfs), and peers can make the shim log errors.
const limit = 1 << 20

// Printf writes a line.
func Printf(format string, args ...any) {
	var st unix.Stat_t
	if unix.Fstat(2, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size > limit {
		unix.Ftruncate(2, 0) // descriptor 2 is in append mode
	}
	fmt.Fprintf(os.Stderr, time.Now().UTC().Format("2006-01-02T15:04:05.000Z ")+format+"\n", args...)
}
