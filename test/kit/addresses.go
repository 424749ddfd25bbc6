// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"testing"
	"time"

	"holdfast/internal/network/dump"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AwaitAddresses waits until the kernel has completed duplicate address
// detection for the IPv6 addresses of the test's network namespace. The kernel
// sends a message for each address, a second or more after it was added, so
// AwaitAddresses subscribes before it looks.
func AwaitAddresses(t testing.TB) {
	t.Helper()
	changes := make(chan netlink.AddrUpdate, 1024)
	done := make(chan struct{})
	defer close(done)
	if err := netlink.AddrSubscribe(changes, done); err != nil {
		t.Fatal(err)
	}
	late := time.After(10 * time.Second)
	for {
		any, err := probing()
		if err != nil {
			t.Fatal(err)
		}
		if !any {
			return
		}
		select {
		case <-changes:
		case <-late:
			return // such as for an interface without carrier, whose message may not come soon
		}
	}
}

func probing() (any bool, err error) {
	all, err := dump.Addrs(nil, netlink.FAMILY_V6)
	for _, a := range all {
		// An address whose detection failed stays tentative for ever.
		any = any || a.Flags&unix.IFA_F_TENTATIVE != 0 && a.Flags&unix.IFA_F_DADFAILED == 0
	}
	return any, err
}
