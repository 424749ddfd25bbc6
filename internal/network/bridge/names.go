// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"holdfast/internal/osthread"
)

// NameServer is the address of the containers' name server, as with Docker.
var NameServer = netip.AddrFrom4([4]byte{127, 0, 0, 11})

// ListenNames opens the sockets of a container's name server in the namespace at
// path: one bound for UDP and one listening for TCP, both non-blocking. They have
// ports that the kernel chose, so a server in the container may use port 53. The
// namespace's packet filter redirects port 53 to them. When it is called again,
// the new sockets receive the queries.
func ListenNames(path string) (udp, tcp *os.File, err error) {
	err = osthread.RunInNetns(func() error {
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
			return redirectNames(ports)
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

// redirectNames replaces the namespace's table. The table changes port 53 of
// packets to the name server to the socket's port, and changes it back in the
// answers. It does so for each packet without connection tracking, which every
// packet of the container would pay for: that costs five percent of the round
// trip of one byte. Should the container itself use connection tracking, it sees
// queries after and answers before the change, so they form one connection.
func redirectNames(ports [2]uint16) error {
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
		address, port uint32 // offset of the name server's in the packet's header
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
