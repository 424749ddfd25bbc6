// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/errs"
)

// maxListNumber bounds the numbers of a list, so that "0-4000000000" can't
// exhaust the daemon's memory.
const maxListNumber = 8192

// maxListText bounds a list's text, in bytes. It is enough to name each number
// once. Without it, repeated ranges would cost their numbers each time.
const maxListText = 64 << 10

// parseList expands a list such as "0-2,7" (cpuset(7), list format). It returns
// nil if the list is empty or malformed.
func parseList(s string) []int {
	list, _ := expandList(s)
	return list
}

// expandList is parseList with an error.
func expandList(s string) ([]int, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return nil, nil
	}
	if len(s) > maxListText {
		return nil, errs.Invalid("the list has %d bytes, maximum is %d", len(s), maxListText)
	}
	var in [maxListNumber + 1]bool
	for item := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(item, "-")
		lo, err := strconv.Atoi(strings.TrimSpace(first))
		if err != nil || lo < 0 {
			return nil, errs.Invalid("invalid format: %s", item)
		}
		hi := lo
		if isRange {
			hi, err = strconv.Atoi(strings.TrimSpace(last))
			if err != nil || hi < lo {
				return nil, errs.Invalid("invalid format: %s", item)
			}
		}
		if hi > maxListNumber {
			return nil, errs.Invalid("value of out range, maximum is %d", maxListNumber)
		}
		for n := lo; n <= hi; n++ {
			in[n] = true
		}
	}
	var out []int
	for n, is := range in {
		if is {
			out = append(out, n)
		}
	}
	return out, nil
}

// listWithin reports whether available contains all of want. An empty list is
// always contained.
func listWithin(want, available string) (bool, error) {
	wanted, err := expandList(want)
	if err != nil {
		return false, err
	}
	have := parseList(available)
	for _, n := range wanted {
		if !slices.Contains(have, n) {
			return false, nil
		}
	}
	return true, nil
}
