package bridge

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Event is something that happened to the host's interfaces.
type Event struct {
	// Lost: others may have been missed; nothing else is set.
	Lost bool
	// Address: an address was taken off; nothing else is set.
	Address bool
	// Index and Name are the interface's; Gone says that there is none any
	// more, Up and Port whether it is up and some other one's port.
	Index          int
	Name           string
	Gone, Up, Port bool
}

// Watch calls event for what happens from now on to the interfaces of the
// network namespace that it is called in. event must not wait. After stop it is
// no longer called.
func Watch(event func(Event)) (stop func() error, err error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("watch interfaces: %w", err)
	}
	for _, group := range []uint32{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR} {
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

// eventOf reads struct ifinfomsg and its attributes (rtnetlink(7)).
func eventOf(m netlink.Message) (e Event, ok bool) {
	switch m.Header.Type {
	case unix.RTM_DELADDR:
		return Event{Address: true}, true
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
	default:
		return e, false
	}
	// The family of bridges tells of ports what is told of interfaces too.
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
		switch a.Type {
		case unix.IFLA_IFNAME:
			e.Name = string(bytes.TrimRight(a.Data, "\x00"))
		case unix.IFLA_MASTER:
			e.Port = true
		}
	}
	return e, e.Name != ""
}
