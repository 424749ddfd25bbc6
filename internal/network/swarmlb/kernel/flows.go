// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/dump"
	"holdfast/internal/network/swarmlb"
	"holdfast/internal/osthread"
)

// flow is a tracked connection: its client, where the client sent it to, and which
// address answers.
type flow struct {
	proto  byte
	from   netip.AddrPort
	to, at netip.AddrPort
	mark   uint32
	name   []byte // the attributes that identify it to the kernel
}

// anyProtocol makes forget consider flows of all protocols.
const anyProtocol = 0

// forget removes the connection tracking entries of flows to the targets that lead
// elsewhere, and returns them.
func (s *space) forget(targets []swarmlb.Target, proto byte) (gone []flow, err error) {
	if len(targets) == 0 {
		return nil, nil
	}
	all, err := dump.Whole(func() ([]flow, error) { return s.translated(proto) })
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	to := strayed{byAddr: map[netip.Addr]swarmlb.Flows{}, byPort: map[[2]uint16]swarmlb.Flows{}}
	for _, t := range targets {
		if t.Flows.Port != 0 {
			to.byPort[[2]uint16{uint16(t.Flows.Proto), t.Flows.Port}] = t.Flows
		} else {
			to.byAddr[t.Flows.Addr] = t.Flows
		}
	}
	for _, f := range all {
		if !to.has(f) {
			continue
		}
		req := s.conntrack(ctDelete, unix.NLM_F_ACK)
		req.AddRawData(f.name)
		_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
		if errors.Is(err, unix.ENOENT) {
			continue // it ended
		}
		if err != nil {
			return gone, fmt.Errorf("remove: %w", err)
		}
		gone = append(gone, f)
	}
	return gone, nil
}

// abort ends the sockets of this namespace that are clients of the TCP connections.
// A client that only waits for the server would never learn that its connection has
// ended, because it sends nothing.
func (s *space) abort(flows []flow) error {
	var failed []error
	for _, f := range flows {
		if f.proto != unix.IPPROTO_TCP || !f.from.Addr().Is4() {
			continue
		}
		err := osthread.InNetns(s.file, func() error {
			return netlink.SocketDestroy(net.TCPAddrFromAddrPort(f.from), net.TCPAddrFromAddrPort(f.to))
		})
		// The socket may have ended, may be that of another host, or the kernel can't do
		// it (CONFIG_INET_DIAG_DESTROY): then the connection ends with its next packet.
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) {
			failed = append(failed, fmt.Errorf("end the connection of %s to %s: %w", f.from, f.to, err))
		}
	}
	return errors.Join(failed...)
}

// strayed are flows that lead elsewhere.
type strayed struct {
	byAddr map[netip.Addr]swarmlb.Flows
	byPort map[[2]uint16]swarmlb.Flows
}

func (s strayed) has(f flow) bool {
	flows, ok := s.byAddr[f.to.Addr()]
	if !ok && f.mark == swarmlb.Mark {
		flows, ok = s.byPort[[2]uint16{uint16(f.proto), f.to.Port()}]
	}
	return ok && !slices.ContainsFunc(flows.To, func(to netip.AddrPort) bool {
		return to.Addr() == f.at.Addr() && (to.Port() == 0 || to.Port() == f.at.Port())
	})
}

// Messages and attributes of linux/netfilter/nfnetlink_conntrack.h.
const (
	ctGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1
	ctDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaStatus     = 3
	ctaMark       = 8
	ctaID         = 12
	ctaFilter     = 25
	ctaStatusMask = 26

	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaIPSource      = 1
	ctaIPDestination = 2

	ctaProtoNumber          = 1
	ctaProtoSourcePort      = 2
	ctaProtoDestinationPort = 3

	ctaFilterOrig        = 1
	ctaFilterProtoNumber = 1 << 3

	statusDNAT = 1 << 5 // IPS_DST_NAT
)

func (s *space) conntrack(message, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(message, flags)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: s.tracking}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0})
	return req
}

// translated lists the flows of a protocol whose destination was translated. The
// kernel selects them, because a busy client has thousands of others that have
// ended a moment ago. A kernel that does not know how (before Linux 5.8) lists more.
func (s *space) translated(proto byte) ([]flow, error) {
	req := s.conntrack(ctGet, unix.NLM_F_DUMP)
	req.AddData(nl.NewRtAttr(ctaStatus, binary.BigEndian.AppendUint32(nil, statusDNAT)))
	req.AddData(nl.NewRtAttr(ctaStatusMask, binary.BigEndian.AppendUint32(nil, statusDNAT)))
	if proto != anyProtocol {
		tuple := nl.NewRtAttr(unix.NLA_F_NESTED|ctaTupleOrig, nil)
		tuple.AddRtAttr(unix.NLA_F_NESTED|ctaTupleProto, nil).AddRtAttr(ctaProtoNumber, []byte{proto})
		req.AddData(tuple)
		filter := nl.NewRtAttr(unix.NLA_F_NESTED|ctaFilter, nil)
		filter.AddRtAttr(ctaFilterOrig, nl.Uint32Attr(ctaFilterProtoNumber))
		req.AddData(filter)
	}
	messages, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, err
	}
	var flows []flow
	for _, m := range messages {
		f, err := parseFlow(m)
		if err != nil {
			return nil, err
		}
		if proto == anyProtocol || f.proto == proto {
			flows = append(flows, f)
		}
	}
	return flows, nil
}

// parseFlow parses a struct nfgenmsg with its attributes.
func parseFlow(m []byte) (f flow, err error) {
	if len(m) < nl.SizeofNfgenmsg {
		return f, fmt.Errorf("a flow in %d bytes", len(m))
	}
	err = attributes(m[nl.SizeofNfgenmsg:], func(kind uint16, value, whole []byte) (err error) {
		switch kind {
		case ctaTupleOrig:
			f.name = append(f.name, whole...)
			f.from, f.to, f.proto, err = parseTuple(value)
		case ctaTupleReply:
			f.at, _, _, err = parseTuple(value)
		case ctaID:
			f.name = append(f.name, whole...)
		case ctaMark:
			f.mark = number(value)
		}
		return err
	})
	return f, err
}

// parseTuple returns the ends of a connection in one direction.
func parseTuple(b []byte) (from, to netip.AddrPort, proto byte, err error) {
	var addrs [2]netip.Addr
	var ports [2]uint32
	err = attributes(b, func(kind uint16, value, _ []byte) error {
		if kind != ctaTupleIP && kind != ctaTupleProto {
			return nil
		}
		part := kind
		return attributes(value, func(kind uint16, value, _ []byte) error {
			switch {
			case part == ctaTupleIP && (kind == ctaIPSource || kind == ctaIPDestination):
				addrs[kind-ctaIPSource], _ = netip.AddrFromSlice(value)
			case part == ctaTupleProto && kind == ctaProtoNumber && len(value) > 0:
				proto = value[0]
			case part == ctaTupleProto && (kind == ctaProtoSourcePort || kind == ctaProtoDestinationPort):
				ports[kind-ctaProtoSourcePort] = number(value)
			}
			return nil
		})
	})
	return netip.AddrPortFrom(addrs[0], uint16(ports[0])), netip.AddrPortFrom(addrs[1], uint16(ports[1])), proto, err
}

// number returns a number of two or four bytes, in network byte order.
func number(b []byte) (n uint32) {
	for _, d := range b[:min(len(b), 4)] {
		n = n<<8 | uint32(d)
	}
	return n
}

// attributes calls each with every attribute of a message: its kind, its value, and
// all of its bytes.
func attributes(b []byte, each func(kind uint16, value, whole []byte) error) error {
	for len(b) >= unix.SizeofNlAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofNlAttr || n > len(b) {
			return fmt.Errorf("an attribute of %d bytes in %d", n, len(b))
		}
		end := min(len(b), (n+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1))
		kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		if err := each(kind, b[unix.SizeofNlAttr:n], b[:end]); err != nil {
			return err
		}
		b = b[end:]
	}
	return nil
}
