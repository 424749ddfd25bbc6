package kit

import (
	"errors"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AwaitAddresses waits until the kernel has made sure that nobody else has the
// IPv6 addresses of the test's network namespace. It tells of each when it has,
// a second or more after the address came up, so that who listens for changes
// waits first.
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
			return // of an interface without a carrier, say: it is not told of soon
		}
	}
}

func probing() (any bool, err error) {
	all, err := netlink.AddrList(nil, netlink.FAMILY_V6)
	for errors.Is(err, netlink.ErrDumpInterrupted) {
		all, err = netlink.AddrList(nil, netlink.FAMILY_V6)
	}
	for _, a := range all {
		// One whose probe failed stays tentative for ever.
		any = any || a.Flags&unix.IFA_F_TENTATIVE != 0 && a.Flags&unix.IFA_F_DADFAILED == 0
	}
	return any, err
}
