// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"holdfast/internal/errs"
	"holdfast/internal/shim/proto"
)

// ControlSocket is the name of the handoff socket in the exec root.
const ControlSocket = "handoff.sock"

// Version is the version of the protocol, docs/protocol/handoff.md. Messages only
// gain fields. A receiver refuses an unknown type.
const Version = 1

// Message types. The comment names the sender: s is the successor, d the running
// daemon.
const (
	sayHello    = "hello"    // s: its identity and role
	sayWelcome  = "welcome"  // d: with copies of all descriptors
	sayTake     = "take"     // s: it is prepared, the daemon may stop
	sayWaiting  = "waiting"  // d: what it is waiting for; repeated
	sayYours    = "yours"    // d: it has closed everything that is exclusive
	sayReady    = "ready"    // s: it has restored everything, and does not serve yet
	sayGo       = "go"       // d: it will not take anything back while the successor lives
	sayServing  = "serving"  // s: it accepts connections
	sayReleased = "released" // d: it has notified the service manager and released everything
	sayRefused  = "refused"  // either: the reason for giving up; nothing follows
)

// The purposes of a connection.
const (
	roleTakeover = "takeover" // to become the daemon
	roleFollow   = "follow"   // to notice the daemon's end
	roleForward  = "forward"  // HTTP follows
)

type message struct {
	Type    string `json:"type"`
	Version int    `json:"version,omitempty"`
	Release string `json:"release,omitempty"`
	Pid     int    `json:"pid,omitempty"`
	Error   string `json:"error,omitempty"`

	// In hello:
	Role     string `json:"role,omitempty"`
	DataRoot string `json:"dataRoot,omitempty"`
	ExecRoot string `json:"execRoot,omitempty"`

	// In welcome: the addresses of the listeners. The message carries the
	// listeners' descriptors first, then those of the locked files, then the
	// handoff socket's.
	Listeners []string `json:"listeners,omitempty"`
	Locks     int      `json:"locks,omitempty"`

	// In waiting:
	Waiting []string `json:"waiting,omitempty"`

	// In yours: clients of containers that have not started, with one descriptor
	// each.
	Clients []Client `json:"clients,omitempty"`

	FDs int `json:"fds,omitempty"`
}

// Client is a client that waits for a container to start.
type Client struct {
	Container string          `json:"container"`
	Attach    json.RawMessage `json:"attach"` // proto.Attach
	File      *os.File        `json:"-"`
}

// peer is one end of a handoff connection, with the process at the other end.
type peer struct {
	conn  *proto.Conn
	pid   int
	pidfd *os.File
}

// newPeer takes over a connection. It refuses peers that do not run as the
// daemon's own user, root. The kernel reports the process ID of a peer that
// connected. For a listening peer the kernel reports the process that created the
// socket, which may have been passed on since, so such a peer sends its own
// process ID; see identify.
func newPeer(conn *net.UnixConn) (*peer, error) {
	f, err := conn.File()
	conn.Close()
	if err != nil {
		return nil, fmt.Errorf("handoff: %w", err)
	}
	defer f.Close()
	fd, err := dup(f)
	if err != nil {
		return nil, fmt.Errorf("handoff: %w", err)
	}
	c, err := proto.NewConn(fd)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("handoff: %w", err)
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("handoff: identify the other process: %w", err)
	}
	if cred.Uid != uint32(os.Geteuid()) {
		c.Close()
		return nil, errs.Forbidden("handoff: the process %d of user %d may not take part", cred.Pid, cred.Uid)
	}
	c.MaxFDs = maxFDs
	return &peer{conn: c, pid: int(cred.Pid)}, nil
}

// identify opens the process at the other end.
func (p *peer) identify(pid int) error {
	pidfd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("handoff: process %d: %w: both daemons must be in one PID namespace", pid, err)
	}
	p.pid, p.pidfd = pid, os.NewFile(uintptr(pidfd), "pidfd")
	return nil
}

// dup copies a descriptor without making the open file blocking.
func dup(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var derr error
	err = raw.Control(func(n uintptr) {
		fd, derr = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0)
	})
	return fd, errors.Join(err, derr)
}

func (p *peer) close() {
	p.conn.Close()
	if p.pidfd != nil {
		p.pidfd.Close()
	}
}

// send sends a message with copies of the files.
func (p *peer) send(m message, files ...*os.File) error {
	m.Version, m.FDs = Version, len(files)
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for _, f := range files {
		fd, err := dup(f)
		if err != nil {
			return fmt.Errorf("handoff: send %s: %w", m.Type, err)
		}
		fds = append(fds, fd)
	}
	_ = p.conn.File().SetWriteDeadline(time.Now().Add(writeLimit))
	if err := p.conn.Send(m, fds...); err != nil {
		return fmt.Errorf("handoff: send %s to process %d: %w", m.Type, p.pid, err)
	}
	return nil
}

// maxFDs bounds the descriptors that may arrive before their message: listeners,
// locks, and clients that wait for a start.
const maxFDs = 16 << 10

// writeLimit bounds how long sending may block, because the other process may be
// stopped.
const writeLimit = 10 * time.Second

// receive waits for a message until the deadline; the zero time means no
// deadline. It returns io.EOF if the other process ended or closed the
// connection.
func (p *peer) receive(deadline time.Time) (message, []*os.File, error) {
	var m message
	_ = p.conn.File().SetReadDeadline(deadline)
	if err := p.conn.Receive(&m); err != nil {
		p.conn.DropFDs()
		if errors.Is(err, unix.ECONNRESET) {
			err = io.EOF
		}
		return m, nil, err
	}
	// Descriptors of the next message may have arrived already.
	fds, err := p.conn.TakeFDs(m.FDs)
	if err != nil {
		p.conn.DropFDs()
		return m, nil, err
	}
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		files[i] = os.NewFile(uintptr(fd), "handed over")
	}
	if m.Type == sayRefused {
		closeAll(files)
		p.conn.DropFDs() // no message follows
		return m, nil, errdefs.ErrFailedPrecondition.WithMessage(m.Error)
	}
	return m, files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// gone waits until the process has ended, at most for within, and reports whether
// it has. A zombie counts as ended.
func (p *peer) gone(within time.Duration) bool {
	deadline := time.Now().Add(within)
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return false
	}
	if p.pidfd.SetReadDeadline(deadline) != nil {
		return false
	}
	ended := false
	_ = raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		ended = n > 0 && err == nil
		return ended
	})
	return ended
}
