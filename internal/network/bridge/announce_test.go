// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"bytes"
	"encoding/hex"
	"net"
	"net/netip"
	"testing"
)

func TestAnnouncements(t *testing.T) {
	mac := net.HardwareAddr{2, 0x42, 10, 1, 2, 3}
	for addr, want := range map[string]string{
		"10.1.2.3": "ffffffffffff" + "02420a010203" + "0806" +
			"0001" + "0800" + "06" + "04" + "0001" + "02420a010203" + "0a010203" + "000000000000" + "0a010203",
		"fd00::3": "333300000001" + "02420a010203" + "86dd" +
			"60000000" + "0020" + "3a" + "ff" + "fd000000000000000000000000000003" + "ff020000000000000000000000000001" +
			"8800" + "CCCC" + "20000000" + "fd000000000000000000000000000003" + "0201" + "02420a010203",
	} {
		got, err := announcement(mac, netip.MustParseAddr(addr))
		if err != nil {
			t.Fatal(err)
		}
		if a := netip.MustParseAddr(addr); a.Is6() {
			body := bytes.Clone(got[54:])
			if sum := checksum(got[22:38], got[38:54], 58, body); sum != 0 {
				t.Errorf("the checksum does not add up: %04x", sum)
			}
			got[56], got[57] = 0xcc, 0xcc
			want = string(bytes.ToLower([]byte(want)))
		}
		if hex.EncodeToString(got) != want {
			t.Errorf("%s:\n%x\n%s", addr, got, want)
		}
	}
	if _, err := announcement(nil, netip.MustParseAddr("10.1.2.3")); err == nil {
		t.Error("a frame from nowhere")
	}
}
