// SPDX-License-Identifier: Apache-2.0

package swarmserver

import (
	"net/netip"
	"testing"

	"github.com/containerd/errdefs"
)

func TestAddressesAreReadAsDockerReadsThem(t *testing.T) {
	for _, c := range []struct{ in, host, port string }{
		{"0.0.0.0:2377", "0.0.0.0", "2377"}, {"10.0.0.1", "10.0.0.1", "2377"}, {"10.0.0.1:99", "10.0.0.1", "99"}, {"[::1]:5", "::1", "5"}, {"::1", "::1", "2377"},
	} {
		host, port, err := listenAddr(c.in)
		if err != nil || host != c.host || port != c.port {
			t.Errorf("listen at %s: %s %s %v", c.in, host, port, err)
		}
	}
	for _, wrong := range []string{"", "no such interface:1"} {
		if _, _, err := listenAddr(wrong); !errdefs.IsInvalidArgument(err) {
			t.Errorf("listen at %q: %v", wrong, err)
		}
	}
	if _, _, err := advertiseAddr("0.0.0.0", "1"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an address that no host has is advertised: %v", err)
	}
	if host, port, err := advertiseAddr("10.0.0.1", "77"); err != nil || host != "10.0.0.1" || port != "77" {
		t.Errorf("%s %s %v", host, port, err)
	}
}

func TestPoolsOfTooSmallNetworksAreRefused(t *testing.T) {
	pool := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}
	for size, ok := range map[uint32]bool{0: true, 16: true, 29: true, 30: false, 8: false} {
		if err := checkPools(pool, size); (err == nil) != ok {
			t.Errorf("size %d: %v", size, err)
		}
	}
}
