// SPDX-License-Identifier: Apache-2.0

package networks

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// connect opens a TCP connection to an address and closes it. It stays on its
// thread.
func connect(address string, port int, patience time.Duration) error {
	fd, err := dial(address, port, unix.SOCK_STREAM, patience)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// again repeats a system call that a signal has interrupted.
func again(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

func read(fd int, b []byte) (n int, err error) {
	err = again(func() error { n, err = unix.Read(fd, b); return err })
	return n, err
}

// get requests the root page of a web server. It stays on its thread.
func get(address string, port int) string {
	fd, err := dial(address, port, unix.SOCK_STREAM, 2*time.Second)
	if err != nil {
		return err.Error()
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
		return err.Error()
	}
	var all []byte
	buf := make([]byte, 4096)
	for {
		n, err := read(fd, buf)
		if err != nil || n == 0 {
			_, body, _ := strings.Cut(string(all), "\r\n\r\n")
			return strings.TrimSpace(body)
		}
		all = append(all, buf[:n]...)
	}
}

// dial connects a socket. Later sends and receives on it have the same timeout,
// patience.
func dial(address string, port, kind int, patience time.Duration) (int, error) {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return -1, err
	}
	family, to := unix.AF_INET, unix.Sockaddr(nil)
	if a.Is4() {
		to = &unix.SockaddrInet4{Port: port, Addr: a.As4()}
	} else {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Port: port, Addr: a.As16()}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	tv := unix.NsecToTimeval(patience.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv), // also of connect
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		again(func() error { return unix.Connect(fd, to) }),
	)
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// reply is a name server's answer.
type reply struct {
	code  dnsmessage.RCode
	all   []string // addresses, names or texts, in the order of the answer
	ednsd bool
}

// ask sends a query to the container's name server.
func (h *house) ask(from, name string, kind dnsmessage.Type, tcp bool) reply {
	h.Helper()
	var r reply
	h.within(from, func() (err error) {
		r, err = ask("127.0.0.11", name, kind, tcp)
		return err
	})
	return r
}

func ask(server, name string, kind dnsmessage.Type, tcp bool) (reply, error) {
	if !strings.HasSuffix(name, ".") {
		name += "."
	}
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 4711, RecursionDesired: true})
	n, err := dnsmessage.NewName(name)
	if err != nil {
		return reply{}, err
	}
	var edns dnsmessage.ResourceHeader
	err = errors.Join(
		b.StartQuestions(), b.Question(dnsmessage.Question{Name: n, Type: kind, Class: dnsmessage.ClassINET}),
		b.StartAdditionals(), edns.SetEDNS0(4096, 0, false), b.OPTResource(edns, dnsmessage.OPTResource{}),
	)
	q, ferr := b.Finish()
	if err != nil || ferr != nil {
		return reply{}, errors.Join(err, ferr)
	}
	sock := unix.SOCK_DGRAM
	if tcp {
		sock = unix.SOCK_STREAM
		q = append([]byte{byte(len(q) >> 8), byte(len(q))}, q...)
	}
	fd, err := dial(server, 53, sock, 15*time.Second)
	if err != nil {
		return reply{}, err
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, q); err != nil {
		return reply{}, err
	}
	buf := make([]byte, 65536)
	got := 0
	for {
		n, err := read(fd, buf[got:])
		if err != nil || n == 0 {
			return reply{}, fmt.Errorf("no answer about %s: %w", name, errors.Join(err, errors.New("the server closed the connection")))
		}
		got += n
		if !tcp {
			return parse(buf[:got])
		}
		if got >= 2 && got >= 2+int(buf[0])<<8+int(buf[1]) {
			return parse(buf[2:got])
		}
	}
}

func parse(b []byte) (reply, error) {
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		return reply{}, err
	}
	r := reply{code: m.RCode}
	for _, a := range m.Answers {
		switch body := a.Body.(type) {
		case *dnsmessage.AResource:
			r.all = append(r.all, netip.AddrFrom4(body.A).String())
		case *dnsmessage.AAAAResource:
			r.all = append(r.all, netip.AddrFrom16(body.AAAA).String())
		case *dnsmessage.PTRResource:
			r.all = append(r.all, body.PTR.String())
		case *dnsmessage.TXTResource:
			r.all = append(r.all, strings.Join(body.TXT, ""))
		}
	}
	for _, a := range m.Additionals {
		r.ednsd = r.ednsd || a.Header.Type == dnsmessage.TypeOPT
	}
	return r, nil
}

// resolves checks the addresses of a name.
func (h *house) resolves(from, name string, want ...string) {
	h.Helper()
	r := h.ask(from, name, dnsmessage.TypeA, false)
	if strings.Join(sorted(r.all), " ") != strings.Join(sorted(want), " ") {
		h.Errorf("%s in %s: got %v (%v), want %v", name, from, r.all, r.code, want)
	}
}

// unknown checks that a name does not exist.
func (h *house) unknown(from, name string) {
	h.Helper()
	if r := h.ask(from, name, dnsmessage.TypeA, false); r.code != dnsmessage.RCodeNameError {
		h.Errorf("%s in %s: got %v (%v), want that it does not exist", name, from, r.all, r.code)
	}
}

// fetchHost returns the page that the host gets from a URL.
func fetchHost(url string) string {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(url)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}

// nowhere is the address of the host's name server, which knows no name.
const nowhere = "127.0.0.99"

func answerNobody() error {
	c, err := net.ListenPacket("udp", net.JoinHostPort(nowhere, "53"))
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil {
				continue
			}
			m.Response, m.RCode = true, dnsmessage.RCodeNameError
			if b, err := m.Pack(); err == nil {
				c.WriteTo(b, from)
			}
		}
	}()
	return nil
}
