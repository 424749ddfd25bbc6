// SPDX-License-Identifier: Apache-2.0

package network

import (
	"strconv"
	"strings"

	"holdfast/internal/errs"
)

// ParseHostPort reads a port binding's HostPort: empty or "0" for a port that
// the engine chooses (0, 0), one port, or a range "8000-8010" of which the
// first free one is taken. It fails with ErrInvalidArgument.
func ParseHostPort(s string) (first, last uint16, err error) {
	if s == "" {
		return 0, 0, nil
	}
	a, b, ranged := strings.Cut(s, "-")
	if !ranged {
		b = a
	}
	lo, errA := strconv.ParseUint(a, 10, 16)
	hi, errB := strconv.ParseUint(b, 10, 16)
	if errA != nil || errB != nil || lo > hi || ranged && lo == 0 {
		return 0, 0, errs.Invalid("invalid HostPort: %q: want a port from 1 to 65535, or two of them with a dash", s)
	}
	return uint16(lo), uint16(hi), nil
}
