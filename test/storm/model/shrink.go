// SPDX-License-Identifier: Apache-2.0

package model

import "slices"

// Shrink returns a part of a list for which fails still holds, and for which it
// no longer holds when any one of its elements is left out. It is the algorithm
// ddmin of Zeller and Hildebrandt (IEEE TSE 28, 2002).
func Shrink[T any](list []T, fails func([]T) bool) []T {
	parts := 2
	for len(list) > 0 {
		parts = min(parts, len(list))
		shorter := false
		for i := range parts {
			from, to := len(list)*i/parts, len(list)*(i+1)/parts
			rest := slices.Concat(list[:from], list[to:])
			if fails(rest) {
				list, shorter = rest, true
				parts = max(parts-1, 2)
				break
			}
		}
		if !shorter {
			if parts == len(list) {
				break
			}
			parts *= 2
		}
	}
	return list
}
