// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// listener is a Unix stream socket in the run directory. Its address goes
// through a descriptor of the directory, because a socket's path may have only
// 108 bytes and the run directory's may be longer.
type listener struct {
	f   *os.File
	raw syscall.RawConn
}

// socketAddress returns a short path of a socket in the directory. It is valid in
// every process that sees this one's /proc.
func socketAddress(dirfd int, name string) string {
	return "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(dirfd) + "/" + name
}

// listenUnix makes a listening socket. It replaces a file of the same name.
func listenUnix(dirfd int, name string) (*listener, error) {
	if err := unix.Unlinkat(dirfd, name, 0); err != nil && err != unix.ENOENT {
		return nil, os.NewSyscallError("unlink "+name, err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// The socket's inode gets the mode of its descriptor, less the umask. So there
	// is no moment in which others could connect.
	if err := unix.Fchmod(fd, 0o600); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fchmod", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: socketAddress(dirfd, name)}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind "+name, err)
	}
	// The group is that of the directory and of the API's socket, so that the same
	// users may use both. The mode above was subject to the umask, so it is set
	// here.
	if err := unix.Fchmodat(dirfd, name, 0o660, 0); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("chmod "+name, err)
	}
	if err := unix.Listen(fd, 128); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("listen "+name, err)
	}
	return newListener(fd)
}

// newListener takes over a non-blocking listening socket.
func newListener(fd int) (*listener, error) {
	f := os.NewFile(uintptr(fd), "listener")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &listener{f, raw}, nil
}

// accept returns the descriptor of the next connection, non-blocking and
// close-on-exec.
func (l *listener) accept() (int, error) {
	for {
		fd := -1
		var err error
		rerr := l.raw.Read(func(s uintptr) bool {
			fd, _, err = unix.Accept4(int(s), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			return err != unix.EAGAIN
		})
		switch {
		case rerr != nil:
			return -1, rerr
		case err == unix.EINTR || err == unix.ECONNABORTED:
		case err != nil:
			return -1, os.NewSyscallError("accept", err)
		default:
			return fd, nil
		}
	}
}

func (l *listener) close() { l.f.Close() }

// console receives the master of a container's terminal from the runtime, by
// the convention of the OCI runtimes' --console-socket.
type console struct {
	l      *listener
	dirfd  int
	name   string
	master chan int // receives one descriptor, or is closed without

	mu     sync.Mutex // guards what follows
	conn   *os.File   // the runtime's connection, as long as nothing has come
	due    time.Time  // zero as long as the runtime runs
	closed bool
}

func newConsole(dirfd int, name string, rows, columns uint) (*console, error) {
	l, err := listenUnix(dirfd, name)
	if err != nil {
		return nil, err
	}
	c := &console{l: l, dirfd: dirfd, name: name, master: make(chan int, 1)}
	go func() {
		defer close(c.master)
		fd, err := l.accept()
		if err != nil {
			return
		}
		conn := os.NewFile(uintptr(fd), "console connection")
		defer conn.Close()
		if !c.awaits(conn) {
			return
		}
		master, err := receiveFD(conn)
		if err != nil {
			if !c.over() {
				logf("console socket: %v", err)
			}
			return
		}
		// The size is set before the runtime starts the process, so that the process
		// never sees another one.
		setSize(master, rows, columns)
		c.master <- master
	}()
	return c, nil
}

func (c *console) address() string { return socketAddress(c.dirfd, c.name) }

// consoleTime bounds the wait for a terminal after the runtime has ended.
var consoleTime = 10 * time.Second

// awaits notes the connection of the runtime. The runtime connects when it begins, and
// sends the terminal when the process exists. On a busy machine that may take any time,
// so the wait has no bound as long as the runtime runs. It returns false if nothing is
// awaited any more.
func (c *console) awaits(conn *os.File) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = conn
	if !c.due.IsZero() {
		conn.SetReadDeadline(c.due)
	}
	return !c.closed
}

// over reports whether nothing is awaited any more.
func (c *console) over() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// take waits for the master. The runtime has succeeded before, so it has sent the
// master or never will.
func (c *console) take() (*os.File, error) {
	c.mu.Lock()
	c.due = time.Now().Add(consoleTime)
	c.l.f.SetReadDeadline(c.due)
	if c.conn != nil {
		c.conn.SetReadDeadline(c.due)
	}
	c.mu.Unlock()
	fd, ok := <-c.master
	if !ok {
		return nil, errors.New("the OCI runtime sent no terminal")
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setnonblock", err)
	}
	return os.NewFile(uintptr(fd), "terminal"), nil
}

// close stops waiting. It closes a master that was received and not taken.
func (c *console) close() {
	c.mu.Lock()
	c.closed = true
	c.l.close()
	if c.conn != nil {
		c.conn.Close()
	}
	c.mu.Unlock()
	unix.Unlinkat(c.dirfd, c.name, 0)
	if fd, ok := <-c.master; ok {
		unix.Close(fd)
	}
}

// receiveFD reads one message with one descriptor from a connected socket.
func receiveFD(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	var (
		name [4096]byte
		oob  [64]byte
		oobn int
	)
	if rerr := raw.Read(func(fd uintptr) bool {
		_, oobn, _, _, err = unix.Recvmsg(int(fd), name[:], oob[:], unix.MSG_CMSG_CLOEXEC)
		return err != unix.EAGAIN
	}); rerr != nil {
		return -1, rerr
	}
	if err != nil {
		return -1, os.NewSyscallError("recvmsg", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return -1, err
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue
		}
		for _, extra := range fds[1:] {
			unix.Close(extra)
		}
		return fds[0], nil
	}
	return -1, fmt.Errorf("the runtime's message carried no descriptor")
}

// setSize sets a terminal's size in characters; 0 by 0 keeps it.
func setSize(fd int, rows, columns uint) error {
	if rows == 0 && columns == 0 {
		return nil
	}
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(rows), Col: uint16(columns)})
}

func resizeFile(f *os.File, rows, cols uint) error {
	if f == nil {
		return nil // applied once there is a terminal
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = setSize(int(fd), rows, cols) }); cerr != nil {
		return cerr
	}
	return err
}
