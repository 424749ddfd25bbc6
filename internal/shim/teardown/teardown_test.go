// SPDX-License-Identifier: Apache-2.0

package teardown

import (
	"syscall"
	"testing"
)

func TestNetlinkErrorsButForWhatIsGone(t *testing.T) {
	reply := func(code int32) []byte {
		b := make([]byte, 36)
		b[0], b[4] = 36, 2 // length, NLMSG_ERROR, on a little-endian machine
		for i := range 4 {
			b[16+i] = byte(uint32(code) >> (8 * i))
		}
		return b
	}
	b := append(append(reply(0), reply(-int32(syscall.ENOENT))...), reply(-int32(syscall.EPERM))...)
	if got := netlinkErrors(b); len(got) != 1 || got[0] != syscall.EPERM {
		t.Errorf("got %v", got)
	}
}

func FuzzNetlinkErrors(f *testing.F) {
	f.Add([]byte{36, 0, 0, 0, 2, 0})
	f.Add(make([]byte, 40))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n := len(netlinkErrors(b)); n > len(b)/16 {
			t.Fatalf("%d errors in %d bytes", n, len(b))
		}
	})
}

func TestRemovingStaysInTheRunDirectory(t *testing.T) {
	for path, want := range map[string]bool{
		"/run/x/file": true, "/run/x/a/b": true, "/run/x": false, "/run/x/": false, "/run": false,
		"/run/x/../y": false, "/run/xy": false, "/etc/passwd": false, "relative": false, "/run/x/..": false, "/run/x/..a": true,
	} {
		if got := within("/run/x", path); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
}
