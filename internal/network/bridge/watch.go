// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Event is a change of the host's interfaces.
type Event struct {
	// Lost: events may have been missed; no other field is set.
	Lost bool
	// Address: an address was removed, or an IPv6 address was added; no other field
	// is set.
	Address bool
	// Router: the host learned a route from a router advertisement; no other field
	// is set.
	Router bool
	// Index and Name identify the interface. Gone means that it was removed. Up and
	// Port report whether it is up and whether it is a port of another interface.
	Index          int
	Name           string
	Gone, Up, Port bool
	// Kind is the driver's name, such as "bridge" or "veth". It is empty for a
	// device.
	Kind string
}

// Watch calls event for each change of the interfaces in the calling thread's
// network namespace. event must not block. It is not called after stop has
// returned.
func Watch(event func(Event)) (stop func() error, err error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("watch interfaces: %w", err)
	}
	if err := onlyAdvertised(conn); err != nil {
		return nil, fmt.Errorf("watch interfaces: %w", errors.Join(err, conn.Close()))
	}
	for _, group := range []uint32{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE} {
		if err := conn.JoinGroup(group); err != nil {
			return nil, fmt.Errorf("watch interfaces: %w", errors.Join(err, conn.Close()))
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			messages, err := conn.Receive()
			switch {
			case errors.Is(err, unix.ENOBUFS):
				event(Event{Lost: true})
				continue
			case err != nil:
				return // closed
			}
			for _, m := range messages {
				if e, ok := eventOf(m); ok {
					event(e)
				}
			}
		}
	}()
	return func() error {
		err := conn.Close()
		<-done
		return err
	}, nil
}

// onlyAdvertised makes the kernel drop notifications of routes that no router
// advertised, because a host may have hundreds of thousands of them that come and
// go. Each notification is a message of its own.
func onlyAdvertised(conn *netlink.Conn) error {
	const typeAt, protocolAt = 4, unix.SizeofNlMsghdr + 5 // in struct nlmsghdr, and rtm_protocol after it
	// A BPF filter loads numbers as big endian, but these are in the host's byte
	// order.
	newRoute := uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.RTM_NEWROUTE)))
	delRoute := uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.RTM_DELROUTE)))
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: typeAt, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: delRoute, SkipTrue: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: newRoute, SkipFalse: 2},
		bpf.LoadAbsolute{Off: protocolAt, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.RTPROT_RA, SkipFalse: 1},
		bpf.RetConstant{Val: 1<<32 - 1},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return err
	}
	return conn.SetBPF(filter)
}

// eventOf parses struct ifinfomsg and its attributes (rtnetlink(7)).
func eventOf(m netlink.Message) (e Event, ok bool) {
	switch m.Header.Type {
	case unix.RTM_DELADDR:
		return Event{Address: true}, true
	case unix.RTM_NEWADDR:
		// When IPv6 is switched on for an interface it gets a link-local address.
		// When the host accepts a router advertisement it gets an address of its
		// prefix.
		return Event{Address: true}, len(m.Data) > 0 && m.Data[0] == unix.AF_INET6
	case unix.RTM_NEWROUTE:
		return Event{Router: true}, true
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
	default:
		return e, false
	}
	// The bridge family repeats notifications about ports.
	if len(m.Data) < unix.SizeofIfInfomsg || m.Data[0] != unix.AF_UNSPEC {
		return e, false
	}
	e.Index = int(int32(binary.NativeEndian.Uint32(m.Data[4:])))
	e.Gone = m.Header.Type == unix.RTM_DELLINK
	e.Up = binary.NativeEndian.Uint32(m.Data[8:])&unix.IFF_UP != 0
	attrs, err := netlink.UnmarshalAttributes(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return Event{Lost: true}, true
	}
	for _, a := range attrs {
		switch a.Type &^ unix.NLA_F_NESTED {
		case unix.IFLA_IFNAME:
			e.Name = string(bytes.TrimRight(a.Data, "\x00"))
		case unix.IFLA_MASTER:
			e.Port = true
		case unix.IFLA_LINKINFO:
			info, err := netlink.UnmarshalAttributes(a.Data)
			if err != nil {
				return Event{Lost: true}, true
			}
			for _, i := range info {
				if i.Type == nl.IFLA_INFO_KIND {
					e.Kind = string(bytes.TrimRight(i.Data, "\x00"))
				}
			}
		}
	}
	return e, e.Name != ""
}
