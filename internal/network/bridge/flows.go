// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/dump"
)

// ForgetFlows removes the connection tracking entries of both families that a filter
// matches.
func ForgetFlows(f netlink.CustomConntrackFilter) error {
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		err := dump.Repeat(func() error {
			_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, f)
			return err
		})
		if err != nil {
			return fmt.Errorf("connection tracking: %w", err)
		}
	}
	return nil
}
