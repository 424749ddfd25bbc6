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

	"holdfast/internal/shim/proto"
)

// ControlSocket is the name of the handoff socket in the exec root.
const ControlSocket = "handoff.sock"

// Version is that of the protocol, docs/protocol/handoff.md. Messages only gain
// fields; who does not know a type refuses it.
const Version = 1

// What a message says. Who sends it stands before it: s is the successor, d
// the daemon that is there.
const (
	sayHello    = "hello"    // s: who it is and what it wants
	sayWelcome  = "welcome"  // d: with copies of all descriptors
	sayTake     = "take"     // s: it is prepared, the daemon may stop
	sayWaiting  = "waiting"  // d: what it waits for, any number of times
	sayYours    = "yours"    // d: it has closed everything that is exclusive
	sayReady    = "ready"    // s: it has restored everything, and serves nothing yet
	sayGo       = "go"       // d: it will not take anything back any more while the successor lives
	sayServing  = "serving"  // s: it accepts connections
	sayReleased = "released" // d: it has told the service manager and let go
	sayRefused  = "refused"  // either: no, and why; nothing follows
)

// What a connection is for.
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

	// Of hello.
	Role     string `json:"role,omitempty"`
	DataRoot string `json:"dataRoot,omitempty"`
	ExecRoot string `json:"execRoot,omitempty"`

	// Of welcome: the addresses of the listeners, whose descriptors come
	// first; then so many of locked files; then the handoff socket's own.
	Listeners []string `json:"listeners,omitempty"`
	Locks     int      `json:"locks,omitempty"`

	// Of waiting.
	Waiting []string `json:"waiting,omitempty"`

	// Of yours: clients of containers that have not started, a descriptor each.
	Clients []Client `json:"clients,omitempty"`

	FDs int `json:"fds,omitempty"`
}

// Client is a client that waits for the start of a container.
type Client struct {
	Container string          `json:"container"`
	Attach    json.RawMessage `json:"attach"` // proto.Attach
	File      *os.File        `json:"-"`
}

// peer is one end of a handoff, and the process at the other.
type peer struct {
	conn  *proto.Conn
	pid   int
	pidfd *os.File
}

// newPeer takes charge of a connection. Only those of the daemon's own user,
// root, are taken. Which process it is at the other end is known of one that
// has connected; of one that listens the kernel says who made the socket, which
// may have been given on since, so that one says it itself, see identify.
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
		return nil, fmt.Errorf("handoff: who is it: %w", err)
	}
	if cred.Uid != uint32(os.Geteuid()) {
		c.Close()
		return nil, errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("handoff: the process %d of user %d may not take part", cred.Pid, cred.Uid))
	}
	return &peer{conn: c, pid: int(cred.Pid)}, nil
}

// identify takes hold of the process at the other end.
func (p *peer) identify(pid int) error {
	pidfd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("handoff: process %d: %w: both daemons must be in one PID namespace", pid, err)
	}
	p.pid, p.pidfd = pid, os.NewFile(uintptr(pidfd), "pidfd")
	return nil
}

// dup copies a descriptor without making the open file a blocking one.
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

// writeLimit bounds how long a message may take to be sent: the other process
// may be stopped.
const writeLimit = 10 * time.Second

// receive waits for a message until the deadline; zero is none. io.EOF is the
// end of the other process, or of its interest.
func (p *peer) receive(deadline time.Time) (message, []*os.File, error) {
	var m message
	_ = p.conn.File().SetReadDeadline(deadline)
	if err := p.conn.Receive(&m); err != nil {
		if errors.Is(err, unix.ECONNRESET) {
			err = io.EOF
		}
		return m, nil, err
	}
	fds, err := p.conn.TakeFDs(m.FDs)
	if err != nil {
		return m, nil, err
	}
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		files[i] = os.NewFile(uintptr(fd), "handed over")
	}
	if m.Type == sayRefused {
		closeAll(files)
		return m, nil, errdefs.ErrFailedPrecondition.WithMessage(m.Error)
	}
	return m, files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// gone waits until the process has ended, at most so long, and reports whether
// it has. A zombie has.
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
