// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// dumpTries bounds the retries of an interrupted listing. One listing takes a
// fraction of a millisecond, so the limit is only reached on a host whose state
// changes all the time.
const dumpTries = 1000

// whole repeats a listing until the kernel's state did not change during it: a
// listing with ErrDumpInterrupted may miss entries.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range dumpTries {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}
