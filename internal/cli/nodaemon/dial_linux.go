// SPDX-License-Identifier: Apache-2.0

package nodaemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// daemonBinary is the program of the observer. It is searched beside this
// program and in PATH, but never near the socket, which anyone may have
// created.
const daemonBinary = "holdfastd"

// First bytes of an observer's first message. holdfastd has the same constants.
const (
	ready   = '+'
	unknown = '?'
	failed  = '-'
)

// dialTimeout is Docker's timeout for a Unix socket.
const dialTimeout = 10 * time.Second

// Dialer connects to a daemon on this host or, if none answers, to an observer.
type Dialer struct {
	socket string
	note   func(socket string)

	mu       sync.Mutex
	observer *os.File // the observer's socket, once one is started
	// refused is set if there is nothing to observe.
	refused error
}

// New makes a dialer for the daemon's socket. It calls note once, when it first
// uses an observer.
func New(socket string, note func(socket string)) *Dialer {
	return &Dialer{socket: socket, note: note}
}

// DialContext connects. If no daemon answers and none of Holdfast ever served
// the socket, it returns the error of the connection, from which clients make
// their message. Once a command has used an observer it keeps using it, so that
// its requests are consistent.
func (d *Dialer) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.observer == nil {
		dialer := net.Dialer{Timeout: dialTimeout}
		conn, err := dialer.DialContext(ctx, "unix", d.socket)
		if err == nil || d.refused != nil || !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ENOENT) {
			return conn, err
		}
		if d.observer, err = observe(d.socket, err); err != nil {
			d.refused = err
			return nil, err
		}
		d.note(d.socket)
	}
	return connect(d.observer)
}

// observe starts an observer and waits until it is ready. nobody is the error
// to return if there is nothing to observe.
func observe(socket string, nobody error) (*os.File, error) {
	binary, err := find()
	if err != nil {
		return nil, nobody
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "observer"), os.NewFile(uintptr(fds[1]), "observer's end")
	cmd := exec.Command(binary, "observe", "--socket", socket)
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	// Ctrl-C must reach only the command, which may forward it through the
	// observer.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("%w (and %s can't be run to ask the shims: %w)", nobody, binary, err)
	}
	go cmd.Wait()

	word := make([]byte, 4096)
	n, err := ours.Read(word)
	switch {
	case err == nil && n > 0 && word[0] == ready:
		return ours, nil
	case err == nil && n > 0 && word[0] == failed:
		err = fmt.Errorf("%w (and the shims can't be asked: %s)", nobody, word[1:n])
	default: // unknown, or a release without observers
		err = nobody
	}
	ours.Close()
	return nil, err
}

// find returns the path of the daemon's program.
func find() (string, error) {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), daemonBinary)
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() {
			return beside, nil
		}
	}
	return exec.LookPath(daemonBinary)
}

// connect passes one end of a socket pair to the observer and returns the
// other.
func connect(observer *os.File) (net.Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	near := os.NewFile(uintptr(fds[0]), "API")
	defer near.Close()
	defer unix.Close(fds[1])
	raw, err := observer.SyscallConn()
	if err != nil {
		return nil, err
	}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		sent = unix.Sendmsg(int(fd), []byte{0}, unix.UnixRights(fds[1]), nil, unix.MSG_NOSIGNAL)
		return sent != unix.EAGAIN
	})
	if err := errors.Join(err, sent); err != nil {
		return nil, fmt.Errorf("the process that asks the shims has ended: %w", err)
	}
	return net.FileConn(near)
}
