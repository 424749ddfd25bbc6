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

// Limits. A container can use up its own name server, and nothing else of its
// shim's.
const (
	inFlight   = 1024            // questions that are forwarded at once
	sessions   = 128             // connections of TCP at once; more wait
	tryTimeout = 2 * time.Second // for one server
	idle       = 10 * time.Second
	maxMessage = 65535
	// received is room for a burst of questions, in bytes of the kernel's
	// memory. It is used only while they wait.
	received = 4 << 20
)

// Server answers on two sockets that somebody else bound.
type Server struct {
	table table
	udp   *os.File
	tcp   *os.File
	slots chan struct{} // of what is forwarded
	doors chan struct{} // of connections
}

// New makes a server of a bound UDP and a listening TCP socket, both
// non-blocking, and the path of the View. They are the server's from now on.
func New(view string, udp, tcp *os.File) *Server {
	if raw, err := udp.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, received) })
	}
	return &Server{
		table: table{path: view}, udp: udp, tcp: tcp,
		slots: make(chan struct{}, inFlight), doors: make(chan struct{}, sessions),
	}
}

// Serve answers until Close.
func (s *Server) Serve() {
	go s.serveTCP()
	s.serveUDP()
}

// Close ends it.
func (s *Server) Close() {
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
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			n, from, rerr = unix.Recvfrom(int(fd), buf, 0)
			return rerr != unix.EAGAIN
		})
		if err != nil {
			return // closed
		}
		if rerr != nil {
			continue
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
			reply(s.forward(q, false))
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
			continue
		}
		go func() {
			defer func() { <-s.doors }()
			s.session(os.NewFile(uintptr(fd), "dns client"))
		}()
	}
}

// session answers the questions of one connection, one after the other.
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

// forward asks the servers, one after the other, with the question as it came.
func (s *Server) forward(q query, tcp bool) []byte {
	servers := s.table.upstream()
	if len(servers) == 0 {
		return q.missing()
	}
	answer := q.failure()
	for _, server := range servers {
		got, err := ask(server, q.raw, tcp)
		if err != nil {
			continue
		}
		answer = got
		// One that can't or won't say is not the last word.
		if code := dnsmessage.RCode(got[3] & 0x0f); code != dnsmessage.RCodeServerFailure && code != dnsmessage.RCodeRefused {
			break
		}
	}
	return answer
}

// ask asks one server. Its answer must be to this question.
func ask(server netip.AddrPort, question []byte, tcp bool) ([]byte, error) {
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
		if err == nil && !answers(got, question) {
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
		// Memory for the largest answer is taken when there is one, not while
		// it is waited for: a thousand questions may wait.
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
		case answers(got, question):
			return got, nil
		}
		// Another ID is an answer that came late, or a guess of somebody's.
	}
}

var buffers = sync.Pool{New: func() any { return new([maxMessage]byte) }}

// answers reports whether a message is the answer to a question, by its ID.
func answers(got, question []byte) bool {
	return len(got) >= 12 && got[0] == question[0] && got[1] == question[1] && got[2]&0x80 != 0
}

// connect makes a connected, non-blocking socket that the poller serves.
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

// readMessage reads a message of a stream: two bytes of length, then itself
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
