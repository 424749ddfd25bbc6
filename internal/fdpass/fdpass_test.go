// SPDX-License-Identifier: Apache-2.0

package fdpass

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// pair returns the two ends of a connection that keeps the bounds of messages.
func pair(t *testing.T) (near, far *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "end")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return ends[0], ends[1]
}

// receive returns the message and the control messages that arrive.
func receive(t *testing.T, conn *net.UnixConn) (message, control []byte) {
	t.Helper()
	message, control = make([]byte, 64), make([]byte, 4*Space)
	n, c, _, _, err := conn.ReadMsgUnix(message, control)
	if err != nil {
		t.Fatal(err)
	}
	return message[:n], control[:c]
}

// openFiles returns the number of descriptors of this process.
func openFiles(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func TestSocketArrivesWithItsMessage(t *testing.T) {
	near, far := pair(t)
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("unix", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	file, err := accepted.(*net.UnixConn).File()
	accepted.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := Send(near, []byte("a client"), file); err != nil {
		t.Fatal(err)
	}
	file.Close()

	message, control := receive(t, far)
	got, err := Socket(control)
	if err != nil || string(message) != "a client" {
		t.Fatalf("message %q, error %v", message, err)
	}
	defer got.Close()
	if _, err := got.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := client.Read(buf); err != nil || string(buf) != "hello" {
		t.Fatalf("the client read %q, error %v", buf, err)
	}
}

// Descriptors that a sender sends too many must not stay open in the receiver.
func TestWrongNumberOfDescriptorsIsRefusedAndClosed(t *testing.T) {
	near, far := pair(t)
	for _, fds := range [][]int{nil, {0, 1}, {0, 1, 2}} {
		var rights []byte
		if fds != nil {
			rights = unix.UnixRights(fds...)
		}
		before := openFiles(t)
		if _, _, err := near.WriteMsgUnix([]byte("x"), rights, nil); err != nil {
			t.Fatal(err)
		}
		_, control := receive(t, far)
		if c, err := Socket(control); err == nil {
			c.Close()
			t.Errorf("%d descriptors were accepted", len(fds))
		}
		if after := openFiles(t); after != before {
			t.Errorf("%d descriptors: %d files were open before, %d after", len(fds), before, after)
		}
	}
}

func TestFileThatIsNoSocketIsRefusedAndClosed(t *testing.T) {
	near, far := pair(t)
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before := openFiles(t)
	if err := Send(near, []byte("x"), f); err != nil {
		t.Fatal(err)
	}
	_, control := receive(t, far)
	if _, err := Socket(control); err == nil {
		t.Error("a file was accepted as a socket")
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d files were open before, %d after", before, after)
	}
}
