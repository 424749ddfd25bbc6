// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sides returns the two ends of a connection: the client's and the shim's.
func sides(t *testing.T) (client *os.File, sock *Socket) {
	t.Helper()
	client, fd := connect(t, "unix")
	t.Cleanup(func() { client.Close() })
	client.SetDeadline(time.Now().Add(30 * time.Second))
	sock, err := NewSocket(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sock.Close)
	return client, sock
}

// process has both ends of a process's input.
type process struct {
	pipe   *Pipe
	reader *os.File
}

func newProcess(t *testing.T) *process {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	p := &process{pipe: NewPipe(os.NewFile(uintptr(fds[1]), "stdin")), reader: os.NewFile(uintptr(fds[0]), "reader")}
	t.Cleanup(func() { p.reader.Close(); p.pipe.File().Close() })
	p.reader.SetDeadline(time.Now().Add(30 * time.Second))
	return p
}

func all(t *testing.T, f *os.File) string {
	t.Helper()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func duplicate(t *testing.T, f *os.File) int {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func shut(t *testing.T, f *os.File) {
	t.Helper()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_WR) })
}

func TestReadAfterEveryEndIsToldAnEnd(t *testing.T) {
	for name, spoil := range map[string]func(client *os.File, sock *Socket){
		"end":    func(client *os.File, sock *Socket) { client.Close() },
		"closed": func(client *os.File, sock *Socket) { sock.f.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			client, sock := sides(t)
			spoil(client, sock)
			told := 0
			err := ReadStep(sock.f, make([]byte, 8), func(p []byte, eof bool) {
				if eof {
					told++
				}
			})
			if err == nil || told != 1 {
				t.Errorf("err %v, %d calls with eof", err, told)
			}
		})
	}
	t.Run("deadline", func(t *testing.T) {
		_, sock := sides(t)
		sock.f.SetReadDeadline(time.Unix(1, 0))
		err := ReadStep(sock.f, make([]byte, 8), func([]byte, bool) { t.Error("took was called after a deadline") })
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
	})
}

func TestOnlyStreamSocketsAreClients(t *testing.T) {
	open := func(path string, flags int) int {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	pair := func(kind int) int {
		fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fds[1])
		return fds[0]
	}
	memfd, err := unix.MemfdCreate("none", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	listening, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Bind(listening, &unix.SockaddrUnix{})
	if err := unix.Listen(listening, 1); err != nil {
		t.Fatal(err)
	}
	for name, fd := range map[string]int{
		"listening socket": listening,
		"folder":           open("/", unix.O_DIRECTORY), "path": open("/", unix.O_PATH), "null": open(os.DevNull, unix.O_RDWR),
		"file": memfd, "datagrams": pair(unix.SOCK_DGRAM), "packets": pair(unix.SOCK_SEQPACKET),
	} {
		if _, err := NewSocket(fd); err == nil {
			t.Errorf("%s: accepted as a client's socket", name)
		} else if err := unix.Close(fd); err != unix.EBADF {
			t.Errorf("%s: not closed", name)
		}
	}
	if _, err := NewSocket(pair(unix.SOCK_STREAM)); err != nil {
		t.Errorf("stream: %v", err)
	}
}

func TestFrames(t *testing.T) {
	if got, want := Frame(2, []byte("abc"), false), []byte("\x02\x00\x00\x00\x00\x00\x00\x03abc"); !bytes.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := Frame(1, []byte("abc"), true); string(got) != "abc" {
		t.Errorf("raw: %q", got)
	}
}
