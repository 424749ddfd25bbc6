// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// FuzzPeerReceives receives from a process that may send anything, with
// descriptors of any kind and number. Each receive returns a message with as many
// descriptors as it announces, or an error. No descriptor that was not returned
// stays open.
func FuzzPeerReceives(f *testing.F) {
	frame := func(s string) []byte {
		return append([]byte{0, 0, byte(len(s) >> 8), byte(len(s))}, s...)
	}
	for _, text := range []string{
		`{"type":"hello","version":1,"role":"takeover","dataRoot":"/d","execRoot":"/e"}`,
		`{"type":"welcome","version":1,"listeners":["unix:///x"],"locks":1,"fds":3}`,
		`{"type":"yours","clients":[{"container":"c","attach":{}}],"fds":1}`,
		`{"type":"yours","fds":-1}`, `{"type":"yours","fds":1000000000}`, `{"type":"refused","error":"no","fds":2}`,
		`{"type":"waiting","waiting":["a","b"]}`, `{}`, `null`, `[1]`, `{"type":7}`,
	} {
		for _, fds := range []byte{0, 1, 3, 9} {
			f.Add(frame(text), fds, byte(0))
			f.Add(append(frame(text), frame(text)...), fds, byte(fds+1))
		}
		f.Add(frame(text)[:len(text)/2], byte(1), byte(2))
	}
	// Two messages that arrive together, the second with descriptors.
	f.Add(append(frame(`{"type":"waiting"}`), frame(`{"type":"yours","fds":2,"clients":[{"container":"c","attach":{}},{"container":"d","attach":{}}]}`)...), byte(2), byte(0))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, '{', '}'}, byte(2), byte(0))
	f.Add([]byte{0, 0, 0, 0}, byte(2), byte(0))
	f.Fuzz(func(t *testing.T, said []byte, count, kind byte) {
		before := openDescriptors(t)
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ours := os.NewFile(uintptr(pair[0]), "ours")
		conn, err := net.FileConn(ours)
		ours.Close()
		if err != nil {
			t.Fatal(err)
		}
		p, err := newPeer(conn.(*net.UnixConn))
		if err != nil {
			t.Fatal(err)
		}
		var fds []int
		for i := range int(count) % 20 {
			fds = append(fds, anyKind(int(kind)+i))
		}
		// Send in two parts: the descriptors arrive with the first, before the
		// message is complete.
		cut := len(said) / 2
		unix.Sendmsg(pair[1], said[:cut], unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
		unix.Sendmsg(pair[1], said[cut:], nil, nil, unix.MSG_NOSIGNAL)
		unix.Close(pair[1])
		for _, fd := range fds {
			unix.Close(fd)
		}
		for {
			m, files, err := p.receive(time.Now().Add(10 * time.Second))
			if err != nil {
				if len(files) > 0 {
					t.Errorf("%d descriptors with an error", len(files))
				}
				break
			}
			if len(files) != m.FDs {
				t.Errorf("%d descriptors, announced are %d", len(files), m.FDs)
			}
			closeAll(files)
		}
		p.close()
		if after := openDescriptors(t); after > before {
			t.Errorf("%d descriptors are open, there were %d", after, before)
		}
	})
}

func anyKind(n int) int {
	switch n % 6 {
	case 0:
		fd, _ := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return fd
	case 1:
		fd, _ := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
		return fd
	case 2:
		fd, _ := unix.MemfdCreate("fuzz", unix.MFD_CLOEXEC)
		return fd
	case 3:
		fd, _ := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
		return fd
	case 4:
		fd, _ := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return fd
	default:
		fd, _ := unix.Eventfd(0, unix.EFD_CLOEXEC)
		return fd
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
