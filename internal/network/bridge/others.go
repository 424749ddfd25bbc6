// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"fmt"
	"slices"

	"holdfast/internal/network/dump"
)

// Other is a bridge of the host that the caller does not own.
type Other struct {
	Name string
	// Inner: all its ports belong to virtual machines or containers, or it has
	// none, so no network outside the host is behind it.
	Inner bool
}

// Others returns the host's bridges without the named ones, sorted by name.
func Others(ours []string) ([]Other, error) {
	links, err := dump.Whole(listLinks)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	outer := map[int]bool{}
	for _, l := range links {
		if l.master != 0 && l.kind != "veth" && l.kind != "tun" {
			outer[l.master] = true
		}
	}
	var out []Other
	for _, l := range links {
		if l.kind == "bridge" && !slices.Contains(ours, l.name) {
			out = append(out, Other{Name: l.name, Inner: !outer[l.index]})
		}
	}
	slices.SortFunc(out, func(a, b Other) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return out, nil
}
