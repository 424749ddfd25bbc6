// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/osthread"
)

// Probe is from where addresses on a network are asked whether they are there.
type Probe struct {
	Netns string     // file of a namespace with an endpoint; "" is the calling thread's
	From  netip.Addr // the endpoint's address
	Mark  uint32     // of the packets, or 0
}

// Alive returns which of the IPv4 addresses answer an echo request within a time. The
// kernel of the host with the endpoint answers in its namespace, so that no process
// has to live there. An address whose namespace drops such requests counts as dead.
func (p Probe) Alive(addrs []netip.Addr, within time.Duration) (map[netip.Addr]bool, error) {
	alive := map[netip.Addr]bool{}
	if len(addrs) == 0 {
		return alive, nil
	}
	fail := func(err error) (map[netip.Addr]bool, error) {
		return alive, fmt.Errorf("probe from %s: %w", p.From, err)
	}
	fd, err := p.open()
	if err != nil {
		return fail(err)
	}
	defer unix.Close(fd)
	id := uint16(rand.Uint32())
	for _, a := range addrs {
		// A host that can't be reached is reported here, too.
		_ = unix.Sendto(fd, echo(id), 0, &unix.SockaddrInet4{Addr: a.As4()})
	}
	buf := make([]byte, 512)
	for until := time.Now().Add(within); len(alive) < len(addrs); {
		left := time.Until(until)
		if left <= 0 {
			break
		}
		t := unix.NsecToTimeval(max(left, time.Millisecond).Nanoseconds())
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &t); err != nil {
			return fail(err)
		}
		n, _, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fail(err)
		}
		if from, ok := answered(buf[:n], id); ok {
			alive[from] = true
		}
	}
	return alive, nil
}

func (p Probe) open() (fd int, err error) {
	dial := func() error {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP); err != nil {
			return err
		}
		if p.Mark != 0 {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(p.Mark))
		}
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Addr: p.From.As4()})
		}
		if err != nil {
			unix.Close(fd)
		}
		return err
	}
	if p.Netns == "" {
		err = dial()
		return fd, err
	}
	f, err := os.Open(p.Netns)
	if err != nil {
		return -1, err
	}
	defer f.Close()
	err = osthread.InNetns(f, dial)
	return fd, err
}

// Messages of RFC 792.
const (
	echoReply   = 0
	echoRequest = 8
)

func echo(id uint16) []byte {
	m := []byte{echoRequest, 0, 0, 0, byte(id >> 8), byte(id), 0, 1}
	var sum uint32
	for i := 0; i < len(m); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(m[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(m[2:], ^uint16(sum+sum>>16))
	return m
}

// answered returns from where an IPv4 packet is, if it is the answer to a request of ours.
func answered(packet []byte, id uint16) (from netip.Addr, ok bool) {
	const header = 20
	if len(packet) < header {
		return from, false
	}
	m := packet[min(len(packet), int(packet[0]&0xf)*4):]
	if len(m) < 8 || m[0] != echoReply || binary.BigEndian.Uint16(m[4:]) != id {
		return from, false
	}
	return netip.AddrFrom4([4]byte(packet[12:16])), true
}
