// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"encoding/binary"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// FuzzEvent feeds truncated and arbitrary notifications about interfaces.
func FuzzEvent(f *testing.F) {
	link := make([]byte, unix.SizeofIfInfomsg)
	link = binary.NativeEndian.AppendUint16(link, 9)
	link = binary.NativeEndian.AppendUint16(link, unix.IFLA_IFNAME)
	link = append(link, "eth0\x00\x00\x00\x00"...)
	f.Add(uint16(unix.RTM_NEWLINK), link)
	f.Add(uint16(unix.RTM_DELLINK), link[:17])
	f.Add(uint16(unix.RTM_NEWADDR), []byte{unix.AF_INET6})
	f.Add(uint16(unix.RTM_NEWROUTE), []byte{})
	f.Fuzz(func(t *testing.T, kind uint16, b []byte) {
		e, ok := eventOf(netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind)}, Data: b})
		if ok && !e.Lost && !e.Address && !e.Router && e.Name == "" {
			t.Errorf("an event of nothing: %+v", e)
		}
	})
}
