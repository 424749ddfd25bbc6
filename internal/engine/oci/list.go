package oci

import (
	"slices"
	"strconv"
	"strings"
)

// maxListNumber bounds the numbers of a list, so that "0-4000000000" can't
// take the memory of the daemon.
const maxListNumber = 8192

// parseList expands a list such as "0-2,7" (cpuset(7), list format). It
// returns nil when the list is empty or malformed.
func parseList(s string) []int {
	list, _ := expandList(s)
	return list
}

// expandList is parseList with the reason for a refusal.
func expandList(s string) ([]int, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return nil, nil
	}
	var out []int
	for _, item := range strings.Split(s, ",") {
		first, last, isRange := strings.Cut(item, "-")
		lo, err := strconv.Atoi(strings.TrimSpace(first))
		if err != nil || lo < 0 {
			return nil, invalid("invalid format: %s", item)
		}
		hi := lo
		if isRange {
			hi, err = strconv.Atoi(strings.TrimSpace(last))
			if err != nil || hi < lo {
				return nil, invalid("invalid format: %s", item)
			}
		}
		if hi > maxListNumber {
			return nil, invalid("value of out range, maximum is %d", maxListNumber)
		}
		for n := lo; n <= hi; n++ {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// listWithin reports whether all of want is among available. An empty list is.
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
