// SPDX-License-Identifier: Apache-2.0

// Package handover carries the state of a shim over a re-exec, to the next binary
// in the same process: one JSON object in a memfd, and the descriptors that the
// object names, which keep their numbers. docs/protocol/shim.md describes it.
//
// The package knows how the state travels and which version of it a binary accepts.
// It knows none of the object's keys: these belong to the parts of the shim, each of
// which writes and reads its own section.
package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Schema is the version of the state. It is raised when a shim of the previous
// release could not continue from the new form. Adding a key does not need that.
const Schema = 1

// Names of environment variables. Shims of other releases use them too.
const (
	// Env holds the descriptor number of the memfd.
	Env = "HOLDFAST_SHIM_IMAGE"
	// RefusedEnv holds the reason why the next binary refused the state, for the
	// binary that it execs back to.
	RefusedEnv = "HOLDFAST_SHIM_REFUSED"
)

// AcceptFlag asks a binary whether it accepts the state of the version that follows
// it as another argument.
const AcceptFlag = "--takes-image"

// Accepts reports whether this binary accepts state of a version.
func Accepts(schema int) bool { return schema >= 1 && schema <= Schema }

// AcceptsText is Accepts for the argument of AcceptFlag.
func AcceptsText(schema string) bool {
	n, err := strconv.Atoi(schema)
	return err == nil && Accepts(n)
}

// Write writes a state to a new memfd, which is close-on-exec.
func Write(state any) (fd int, err error) {
	raw, err := json.Marshal(state)
	if err != nil {
		return -1, err
	}
	fd, err = unix.MemfdCreate("shim handover", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("memfd_create", err)
	}
	for off := 0; off < len(raw); {
		n, err := unix.Pwrite(fd, raw[off:], int64(off))
		if err != nil && err != unix.EINTR {
			unix.Close(fd)
			return -1, os.NewSyscallError("write handover state", err)
		}
		off += max(n, 0)
	}
	return fd, nil
}

// Read reads the state from a memfd that Write has filled, and closes the memfd.
func Read(fd int, state any) error {
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat handover state", err)
	}
	raw := make([]byte, st.Size)
	for off := 0; off < len(raw); {
		n, err := unix.Pread(fd, raw[off:], int64(off))
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return fmt.Errorf("read handover state: %w", errors.Join(err, fmt.Errorf("%d of %d bytes", off, len(raw))))
		}
		off += n
	}
	if err := json.Unmarshal(raw, state); err != nil {
		return fmt.Errorf("read handover state: %w", err)
	}
	return nil
}

// Inherit makes the next binary inherit the descriptors, or with false makes them
// close-on-exec again, so that no child inherits them. Negative numbers are none.
func Inherit(descriptors []*int, on bool) {
	flag := unix.FD_CLOEXEC
	if on {
		flag = 0
	}
	for _, n := range descriptors {
		if *n >= 0 {
			unix.FcntlInt(uintptr(*n), unix.F_SETFD, flag)
		}
	}
}
