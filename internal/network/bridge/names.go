package bridge

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// NameServer is where containers find their name server, as with Docker.
var NameServer = netip.AddrFrom4([4]byte{127, 0, 0, 11})

// ListenNames makes the sockets of a container's name server in the namespace
// at path: one bound for UDP and one listening for TCP, both non-blocking. They
// have ports of their own, to which the namespace's packet filter leads what
// is sent to port 53, so that a server in the container may have that port. It
// may be repeated: the last sockets get the questions.
func ListenNames(path string) (udp, tcp *os.File, err error) {
	err = onThread(func() error {
		ns, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("network namespace: %w", err)
		}
		defer ns.Close()
		return inNamespace(ns, nil, func() error {
			var ports [2]uint16
			for i, kind := range []int{unix.SOCK_DGRAM, unix.SOCK_STREAM} {
				f, port, err := bindNames(kind)
				if err != nil {
					return fmt.Errorf("name server's socket: %w", err)
				}
				if ports[i] = port; i == 0 {
					udp = f
				} else {
					tcp = f
				}
			}
			return leadNames(ports)
		})
	})
	if err != nil {
		for _, f := range []*os.File{udp, tcp} {
			if f != nil {
				f.Close()
			}
		}
		return nil, nil, err
	}
	return udp, tcp, nil
}

func bindNames(kind int) (*os.File, uint16, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "names")
	err = unix.Bind(fd, &unix.SockaddrInet4{Addr: NameServer.As4()})
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(fd, 64)
	}
	var bound unix.Sockaddr
	if err == nil {
		bound, err = unix.Getsockname(fd)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, uint16(bound.(*unix.SockaddrInet4).Port), nil
}

// leadNames replaces the namespace's table: what is sent to the name server's
// port 53 gets the socket's port on its way, and the answers get 53 back. It is
// done packet by packet and not by connection tracking, which every packet of
// the container would pay for: that takes a twentieth of the time of a byte
// there and back. Questions change before a tracking that the container may have
// set up itself sees them, and answers after it, so that it sees one connection.
func leadNames(ports [2]uint16) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "holdfast-names"}
	c.AddTable(table)
	c.DelTable(table)
	c.AddTable(table)
	server := NameServer.As4()
	for _, way := range []struct {
		name          string
		priority      *nftables.ChainPriority
		address, port uint32 // offsets of the server's in its header
		answer        bool
	}{
		{"questions", nftables.ChainPriorityRaw, 16, 2, false},
		{"answers", nftables.ChainPriorityMangle, 12, 0, true},
	} {
		chain := c.AddChain(&nftables.Chain{
			Name: way.name, Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookOutput, Priority: way.priority,
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: way.address, Len: 4},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: server[:]},
			&expr.Verdict{Kind: expr.VerdictAccept},
		}})
		for i, proto := range []struct {
			number   byte
			checksum uint32 // offset in its header
		}{{unix.IPPROTO_UDP, 6}, {unix.IPPROTO_TCP, 16}} {
			from, to := uint16(53), ports[i]
			if way.answer {
				from, to = to, from
			}
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto.number}},
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: way.port, Len: 2},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, from)},
				&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, to)},
				&expr.Payload{
					OperationType: expr.PayloadWrite, SourceRegister: 1,
					Base: expr.PayloadBaseTransportHeader, Offset: way.port, Len: 2,
					CsumType: expr.CsumTypeInet, CsumOffset: proto.checksum,
				},
			}})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("lead the name server's port: %w", err)
	}
	return nil
}
