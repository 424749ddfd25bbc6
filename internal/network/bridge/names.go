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

// leadNames replaces the namespace's table: two rules.
func leadNames(ports [2]uint16) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "holdfast-names"}
	c.AddTable(table)
	c.DelTable(table)
	c.AddTable(table)
	chain := c.AddChain(&nftables.Chain{
		Name: "output", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	})
	server := NameServer.As4()
	for i, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}, // ip daddr
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: server[:]},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, // dport
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, 53}},
			&expr.Immediate{Register: 1, Data: server[:]},
			&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, ports[i])},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2},
		}})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("lead the name server's port: %w", err)
	}
	return nil
}
