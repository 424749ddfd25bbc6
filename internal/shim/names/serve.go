// SPDX-License-Identifier: Apache-2.0

package names

import (
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// Limits. A container can exhaust its own name server, but no other part of its
// shim.
const (
	inFlight   = 1024            // concurrently forwarded questions
	sessions   = 128             // concurrent TCP connections; more wait
	tryTimeout = 2 * time.Second // for one upstream server
	idle       = 10 * time.Second
	// acceptAgain is the pause after an error of accept.
	acceptAgain = 100 * time.Millisecond
	maxMessage  = 65535
	// received is the size of the receive buffer, for a burst of questions, in
	// bytes. The kernel uses this memory only while questions wait.
	received = 4 << 20
)

// Server answers on two sockets.
type Server struct {
	table table
	udp   *os.File
	tcp   *os.File
	slots chan struct{} // limits forwarded questions
	doors chan struct{} // limits TCP connections

	closing sync.Once
	closed  chan struct{}
}

// New makes a server of a bound UDP and a listening TCP socket, both non-blocking,
// and the path of the View. The server takes over the sockets.
func New(view string, udp, tcp *os.File) *Server {
	if raw, err := udp.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, received) })
	}
	return &Server{
		table: table{path: view}, udp: udp, tcp: tcp,
		slots: make(chan struct{}, inFlight), doors: make(chan struct{}, sessions),
		closed: make(chan struct{}),
	}
}

// Serve answers until Close.
func (s *Server) Serve() {
	go s.serveTCP()
	s.serveUDP()
}

// Close stops the server and closes its sockets.
func (s *Server) Close() {
	s.closing.Do(func() { close(s.closed) })
	s.udp.Close()
	s.tcp.Close()
}

func (s *Server) serveUDP() {
	raw, err := s.udp.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 4096)
	for {
		var n int
		var from unix.Sockaddr
		err := raw.Read(func(fd uintptr) bool {
			for {
				var err error
				if n, from, err = unix.Recvfrom(int(fd), buf, 0); err != unix.EINTR {
					// After an error too this waits for the next datagram, instead of
					// spinning.
					return err == nil
				}
			}
		})
		if err != nil {
			return // closed
		}
		reply := func(answer []byte) {
			if answer == nil {
				return
			}
			raw.Write(func(fd uintptr) bool {
				return unix.Sendto(int(fd), answer, 0, from) != unix.EAGAIN
			})
		}
		q, ok := parse(buf[:n])
		if !ok {
			reply(refusal(buf[:n]))
			continue
		}
		if answer, local := s.table.local(q); local {
			reply(q.fit(answer))
			continue
		}
		select {
		case s.slots <- struct{}{}:
		default:
			reply(q.failure())
			continue
		}
		q.raw = append([]byte(nil), q.raw...)
		go func() {
			defer func() { <-s.slots }()
			reply(q.cut(s.forward(q, false)))
		}()
	}
}

func (s *Server) serveTCP() {
	raw, err := s.tcp.SyscallConn()
	if err != nil {
		return
	}
	for {
		s.doors <- struct{}{}
		fd := -1
		var aerr error
		err := raw.Read(func(l uintptr) bool {
			fd, _, aerr = unix.Accept4(int(l), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			return aerr != unix.EAGAIN
		})
		if err != nil {
			return
		}
		if aerr != nil {
			<-s.doors
			if !s.pause(aerr) {
				return
			}
			continue
		}
		go func() {
			defer func() { <-s.doors }()
			s.session(os.NewFile(uintptr(fd), "dns client"))
		}()
	}
}

// pause waits after a failed accept. It reports whether the server still serves.
// Without a free descriptor the connection stays in the queue, and without a pause
// accept would fail again at once.
func (s *Server) pause(err error) bool {
	if err == unix.EINTR || err == unix.ECONNABORTED {
		return true
	}
	t := time.NewTimer(acceptAgain)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.closed:
		return false
	}
}

// session answers the questions of one connection, one at a time.
func (s *Server) session(c *os.File) {
	defer c.Close()
	for {
		c.SetDeadline(time.Now().Add(idle))
		msg, err := readMessage(c)
		if err != nil {
			return
		}
		q, ok := parse(msg)
		if !ok {
			if no := refusal(msg); no != nil {
				writeMessage(c, no)
			}
			return
		}
		answer, local := s.table.local(q)
		if !local {
			answer = s.forward(q, true)
		}
		if answer == nil || writeMessage(c, answer) != nil {
			return
		}
	}
}

// forward asks the upstream servers, one after the other. The question is passed on
// unchanged except for its ID.
func (s *Server) forward(q query, tcp bool) []byte {
	servers := s.table.upstream()
	if len(servers) == 0 {
		return q.missing()
	}
	answer := q.failure()
	for _, server := range servers {
		got, err := ask(server, q, tcp)
		if err != nil {
			continue
		}
		answer = got
		// After SERVFAIL or REFUSED the next server is asked.
		if code := dnsmessage.RCode(got[3] & 0x0f); code != dnsmessage.RCodeServerFailure && code != dnsmessage.RCodeRefused {
			break
		}
	}
	return answer
}

// ask asks one server.
//
// An attacker that can send packets with the server's address, such as a container
// on one of the host's bridges, must guess an ID and a port to forge an answer. The
// kernel chooses a new port for each question. The ID is chosen here, as the
// client's may be easy to guess.
func ask(server netip.AddrPort, q query, tcp bool) ([]byte, error) {
	question := append([]byte(nil), q.raw...)
	if _, err := unix.Getrandom(question[:2], 0); err != nil {
		return nil, os.NewSyscallError("getrandom", err)
	}
	answer, err := consult(server, question, q.question, tcp)
	if err != nil {
		return nil, err
	}
	copy(answer, q.raw[:2])
	return answer, nil
}

// consult sends a question and returns its answer. Both have the ID of question.
func consult(server netip.AddrPort, question []byte, asked dnsmessage.Question, tcp bool) ([]byte, error) {
	kind := unix.SOCK_DGRAM
	if tcp {
		kind = unix.SOCK_STREAM
	}
	c, err := connect(server, kind)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(tryTimeout))
	if tcp {
		if err := writeMessage(c, question); err != nil {
			return nil, err
		}
		got, err := readMessage(c)
		if err == nil && !answers(got, question, asked) {
			err = errForeign
		}
		return got, err
	}
	if _, err := c.Write(question); err != nil {
		return nil, err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	for {
		var got []byte
		var rerr error
		// A buffer for the largest answer is taken only when an answer is there: a
		// thousand questions may be waiting.
		err := raw.Read(func(fd uintptr) bool {
			buf := buffers.Get().(*[maxMessage]byte)
			defer buffers.Put(buf)
			n, err := unix.Read(int(fd), buf[:])
			if err == unix.EAGAIN {
				return false
			}
			if err == nil {
				got = append([]byte(nil), buf[:n]...)
			}
			rerr = err
			return true
		})
		switch {
		case err != nil:
			return nil, err
		case rerr == unix.EINTR:
		case rerr != nil:
			return nil, rerr
		case answers(got, question, asked):
			return got, nil
		}
		// With another ID or question it is a late answer or a forged one.
	}
}

var buffers = sync.Pool{New: func() any { return new([maxMessage]byte) }}

// answers reports whether a message is the answer to a question: it has the same ID
// and repeats the question. An error from a server that could not parse the
// question may come without it.
func answers(got, question []byte, asked dnsmessage.Question) bool {
	if len(got) < 12 || got[0] != question[0] || got[1] != question[1] || got[2]&0x80 == 0 {
		return false
	}
	var p dnsmessage.Parser
	h, err := p.Start(got)
	if err != nil {
		return false
	}
	repeated, err := p.Question()
	if err == dnsmessage.ErrSectionDone {
		return h.RCode != dnsmessage.RCodeSuccess && h.RCode != dnsmessage.RCodeNameError
	}
	return err == nil && repeated.Type == asked.Type && repeated.Class == asked.Class &&
		equalFold(repeated.Name, asked.Name)
}

// equalFold compares names as DNS does: ASCII letters case-insensitively, all other
// bytes exactly.
func equalFold(a, b dnsmessage.Name) bool {
	if a.Length != b.Length {
		return false
	}
	lower := func(c byte) byte {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		return c
	}
	for i := range a.Length {
		if lower(a.Data[i]) != lower(b.Data[i]) {
			return false
		}
	}
	return true
}

// connect makes a connected, non-blocking socket that is registered with the
// poller.
func connect(to netip.AddrPort, kind int) (*os.File, error) {
	family, addr := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if a := to.Addr().Unmap(); a.Is4() {
		family, addr = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: a.As4()}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	cerr := unix.Connect(fd, addr)
	f := os.NewFile(uintptr(fd), "dns server")
	if cerr == nil {
		return f, nil
	}
	if cerr != unix.EINPROGRESS {
		f.Close()
		return nil, os.NewSyscallError("connect", cerr)
	}
	if err := f.SetDeadline(time.Now().Add(tryTimeout)); err != nil {
		f.Close()
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err == nil {
		err = raw.Write(func(fd uintptr) bool {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			n, err := unix.Poll(p, 0)
			return n > 0 || err != nil && err != unix.EINTR
		})
	}
	if err == nil {
		var code int
		if code, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && code != 0 {
			err = syscall.Errno(code)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

var (
	errTooLong = errors.New("message too long")
	errForeign = errors.New("not the answer to the question")
)

// readMessage reads a message from a stream: two bytes of length, then the message
// (RFC 1035, 4.2.2).
func readMessage(r io.Reader) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(head[:]))
	_, err := io.ReadFull(r, msg)
	return msg, err
}

func writeMessage(w io.Writer, msg []byte) error {
	if len(msg) > maxMessage {
		return errTooLong
	}
	out := binary.BigEndian.AppendUint16(make([]byte, 0, len(msg)+2), uint16(len(msg)))
	_, err := w.Write(append(out, msg...))
	return err
}
