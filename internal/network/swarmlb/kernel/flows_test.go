// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/swarmlb"
)

// message returns a flow of udp from 10.0.1.5 to 10.0.1.2, port 53, that 10.0.1.6
// answers from port 5353.
func message() []byte {
	tuple := func(kind int, from, to netip.AddrPort) *nl.RtAttr {
		t := nl.NewRtAttr(unix.NLA_F_NESTED|kind, nil)
		ip := t.AddRtAttr(unix.NLA_F_NESTED|ctaTupleIP, nil)
		ip.AddRtAttr(ctaIPSource, from.Addr().AsSlice())
		ip.AddRtAttr(ctaIPDestination, to.Addr().AsSlice())
		proto := t.AddRtAttr(unix.NLA_F_NESTED|ctaTupleProto, nil)
		proto.AddRtAttr(ctaProtoNumber, []byte{unix.IPPROTO_UDP})
		proto.AddRtAttr(ctaProtoSourcePort, []byte{byte(from.Port() >> 8), byte(from.Port())})
		proto.AddRtAttr(ctaProtoDestinationPort, []byte{byte(to.Port() >> 8), byte(to.Port())})
		return t
	}
	client, vip, task := netip.MustParseAddrPort("10.0.1.5:4000"), netip.MustParseAddrPort("10.0.1.2:53"), netip.MustParseAddrPort("10.0.1.6:5353")
	m := (&nl.Nfgenmsg{NfgenFamily: unix.AF_INET}).Serialize()
	m = append(m, tuple(ctaTupleOrig, client, vip).Serialize()...)
	m = append(m, tuple(ctaTupleReply, task, client).Serialize()...)
	m = append(m, nl.NewRtAttr(ctaMark, []byte{0x48, 0, 0, 0}).Serialize()...)
	return append(m, nl.NewRtAttr(ctaID, []byte{1, 2, 3, 4}).Serialize()...)
}

func TestFlowIsRead(t *testing.T) {
	m := message()
	got, err := parseFlow(m)
	if err != nil {
		t.Fatal(err)
	}
	if want := nl.SizeofNfgenmsg + len(got.name) + (len(got.name) - 8) + 8; len(m) != want {
		t.Errorf("the flow's name has %d of %d bytes", len(got.name), len(m))
	}
	got.name = nil
	want := flow{proto: 17, from: netip.MustParseAddrPort("10.0.1.5:4000"), to: netip.MustParseAddrPort("10.0.1.2:53"), at: netip.MustParseAddrPort("10.0.1.6:5353"), mark: swarmlb.Mark}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestStrayedFlows(t *testing.T) {
	f := flow{proto: 17, to: netip.MustParseAddrPort("10.0.1.2:53"), at: netip.MustParseAddrPort("10.0.1.6:5353"), mark: swarmlb.Mark}
	unmarked := f
	unmarked.mark = 0
	vip, task, other := f.to.Addr(), f.at.Addr(), netip.MustParseAddr("10.0.1.9")
	port := func(to ...netip.AddrPort) strayed {
		return strayed{byPort: map[[2]uint16]swarmlb.Flows{{17, 53}: {Proto: 17, Port: 53, To: to}}}
	}
	addr := func(at netip.Addr, to ...netip.AddrPort) strayed {
		return strayed{byAddr: map[netip.Addr]swarmlb.Flows{at: {Addr: at, To: to}}}
	}
	for name, c := range map[string]struct {
		to   strayed
		f    flow
		want bool
	}{
		"to a task of the service":       {addr(vip, netip.AddrPortFrom(other, 0), netip.AddrPortFrom(task, 0)), f, false},
		"to a former task":               {addr(vip, netip.AddrPortFrom(other, 0)), f, true},
		"of a service without tasks":     {addr(vip), f, true},
		"of another service":             {addr(other), f, false},
		"to a task at its port":          {port(f.at), f, false},
		"to a task at another port":      {port(netip.AddrPortFrom(task, 80)), f, true},
		"to another task":                {port(netip.AddrPortFrom(other, 5353)), f, true},
		"of another program to the port": {port(), unmarked, false},
	} {
		if got := c.to.has(c.f); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// FuzzParseFlow: no message makes the parser fail otherwise than with an error, and
// a flow's name is a part of the message.
func FuzzParseFlow(f *testing.F) {
	m := message()
	f.Add(m)
	f.Add(m[:len(m)-3])
	f.Add([]byte{2, 0, 0, 0, 3, 0, 1, 0})
	f.Add([]byte{2, 0, 0, 0, 0xff, 0xff, 1, 0x80, 1})
	f.Fuzz(func(t *testing.T, m []byte) {
		got, err := parseFlow(m)
		if err == nil && len(got.name) > len(m) {
			t.Errorf("a name of %d bytes from a message of %d", len(got.name), len(m))
		}
	})
}
