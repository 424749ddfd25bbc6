// SPDX-License-Identifier: Apache-2.0

package network

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestHostPortIsAPortOrARange(t *testing.T) {
	for s, want := range map[string][2]uint16{
		"": {}, "0": {}, "80": {80, 80}, "65535": {65535, 65535}, "8000-8010": {8000, 8010}, "80-80": {80, 80},
	} {
		first, last, err := ParseHostPort(s)
		if err != nil || first != want[0] || last != want[1] {
			t.Errorf("%q: got %d-%d, %v", s, first, last, err)
		}
	}
	for _, s := range []string{"x", "-", "-1", "1-", "80-79", "0-10", "65536", "1-65536", "1-2-3", " 80", "+80", "٣"} {
		if _, _, err := ParseHostPort(s); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: got %v", s, err)
		}
	}
}

func FuzzParseHostPort(f *testing.F) {
	for _, s := range []string{"", "0", "80", "8000-8010", "80-79", "65536", "-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, last, err := ParseHostPort(s)
		if err == nil && (first > last || first == 0 && strings.Trim(s, "0") != "") {
			t.Errorf("%q: got %d-%d", s, first, last)
		}
	})
}
