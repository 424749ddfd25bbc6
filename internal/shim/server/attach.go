package server

import (
	"encoding/binary"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/logs/format"
	"holdfast/internal/shim/proto"
)

// frameHeader is the length of the header in a multiplexed stream of the
// Docker Engine API: the stream's number, three zeros, the length of what
// follows, 4 bytes big-endian.
const frameHeader = 8

func header(src format.Source, n int) (h [frameHeader]byte) {
	h[0] = byte(src)
	binary.BigEndian.PutUint32(h[4:], uint32(n))
	return h
}

// lingerTime is how long, after the end, a client may take for its next read
// before the shim leaves without it.
const lingerTime = 30 * time.Second

// client is someone attached to the container.
type client struct {
	sock  *socket
	asked proto.Attach // without Pending
	queue *backlog
	done  chan struct{} // the socket is closed

	// What is moved, changed within steps (see still.go).
	sending []byte // taken from the queue and not yet written
	typed   []byte // read from the client and not yet the container's
	esc     escape
	mute    bool // its input has ended
	left    bool // by its detach keys
}

// socket is a client's connection.
type socket struct {
	f        *os.File
	raw      syscall.RawConn
	progress *atomic.Uint64 // counts what was taken, for who waits at the end
	once     sync.Once
}

// newSocket takes over a connected socket.
func newSocket(fd int, progress *atomic.Uint64) (*socket, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setnonblock", err)
	}
	f := os.NewFile(uintptr(fd), "client")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &socket{f: f, raw: raw, progress: progress}, nil
}

// write writes all that left holds, at the peer's pace.
func (s *socket) write(left *[]byte) error {
	for len(*left) > 0 {
		if err := writeSteps(s.f, left); err != nil {
			return err
		}
		s.progress.Add(1)
	}
	return nil
}

// close ends the connection for all who hold the socket: the daemon may not
// have closed its copy yet.
func (s *socket) close() {
	s.once.Do(func() {
		s.raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RDWR) })
		s.f.Close()
	})
}

// release lets go of a connection that others go on with.
func (s *socket) release() { s.once.Do(func() { s.f.Close() }) }

// waitGone returns when the peer, who has already said that it will send no
// more, has closed the connection altogether, or when close was called.
func (s *socket) waitGone() {
	s.raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		unix.Poll(fds, 0)
		return fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
}

// attach connects a client, to whom deliver will write every byte that the
// container writes from now on, up to the end of the run.
func (o *output) attach(sock *socket, a proto.Attach, spillDir string) (*client, *stdin, error) {
	c := &client{sock: sock, queue: newBacklog(spillDir), done: make(chan struct{}), esc: escape{keys: a.DetachKeys}}
	c.typed, c.left = c.esc.filter(a.Pending)
	a.Pending = nil
	c.asked = a
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return nil, nil, errors.New("container is not running")
	}
	o.clients[c], o.all[c] = struct{}{}, struct{}{}
	return c, o.in, nil
}

// send is called with output's lock held and never waits.
func (c *client) send(src format.Source, p []byte) {
	if src == format.Stdout && !c.asked.Stdout || src == format.Stderr && !c.asked.Stderr {
		return
	}
	var head []byte
	if !c.asked.Raw {
		h := header(src, len(p))
		head = h[:]
	}
	if err := c.queue.put(head, p); err != nil {
		c.queue.last(c.farewell("\r\nholdfast: this client reads too slowly and was detached; the container runs on, its log has all output\r\n"))
	}
}

// farewell is a message in the client's format.
func (c *client) farewell(msg string) []byte {
	if c.asked.Raw {
		return []byte(msg)
	}
	h := header(format.Stderr, len(msg))
	return append(h[:], msg...)
}

// finish ends the stream after what is still to be delivered.
func (c *client) finish() { c.queue.last(nil) }

// deliver writes the backlog to the client, at the client's pace.
func (c *client) deliver(o *output) {
	defer close(c.done)
	defer c.sock.close()
	defer func() {
		o.mu.Lock()
		delete(o.clients, c)
		delete(o.all, c)
		o.mu.Unlock()
	}()
	var spent []byte
	for c.queue.wait(len(c.sending) > 0) {
		motion.RLock()
		if len(c.sending) == 0 {
			c.sending = c.queue.next(spent)
			spent = c.sending
		}
		motion.RUnlock()
		if err := c.sock.write(&c.sending); err != nil {
			c.queue.discard()
			return
		}
	}
}

// input carries what the client sends to the container's input. It returns
// when the client has gone, or was detached by its keys, which it reports.
func (c *client) input(in *stdin, stdinOnce bool) (detached bool) {
	size := 512
	if c.asked.Stdin {
		size = 32 << 10
	}
	buf := make([]byte, size)
	for !c.mute && !c.left {
		c.pass(in)
		readStep(c.sock.f, buf, func(p []byte, eof bool) {
			clean, left := c.esc.filter(p)
			c.typed, c.left = append(c.typed, clean...), left
			if eof {
				c.typed = append(c.typed, c.esc.held()...)
				c.esc.pos, c.mute = 0, true
			}
		})
	}
	c.pass(in)
	if c.left {
		c.finish()
		return true
	}
	if c.asked.Stdin && stdinOnce {
		in.closeInput()
	}
	buf = nil
	// It may have closed only its writing side.
	c.sock.waitGone()
	c.queue.discard()
	return false
}

// pass gives the container what the client has typed. What it doesn't take is
// thrown away.
func (c *client) pass(in *stdin) {
	if len(c.typed) > 0 && (!c.asked.Stdin || in.write(&c.typed) != nil) {
		motion.RLock()
		c.typed = nil
		motion.RUnlock()
	}
}

// escape finds the detach keys in what a client types. Keys that may yet
// become the whole sequence are held back.
type escape struct {
	keys []byte
	pos  int // how many keys are held back
}

// filter returns what is to be passed on, and whether the sequence was typed.
func (e *escape) filter(p []byte) (clean []byte, detached bool) {
	if len(e.keys) == 0 {
		return p, false
	}
	clean = make([]byte, 0, len(p)+e.pos)
	for _, b := range p {
		if b != e.keys[e.pos] {
			clean = append(clean, e.keys[:e.pos]...)
			e.pos = 0
			if b != e.keys[0] {
				clean = append(clean, b)
				continue
			}
		}
		if e.pos++; e.pos == len(e.keys) {
			e.pos = 0
			return clean, true
		}
	}
	return clean, false
}

// held is what filter keeps back.
func (e *escape) held() []byte { return e.keys[:e.pos] }
