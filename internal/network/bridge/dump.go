package bridge

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// dumpTries bounds how often an interrupted listing is begun again. One takes
// a fraction of a millisecond, so a host on which all of them are interrupted
// does nothing else.
const dumpTries = 1000

// whole lists something of the kernel until nothing was changed in the middle
// of it: what comes with ErrDumpInterrupted may miss things that are there.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range dumpTries {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}
