// SPDX-License-Identifier: Apache-2.0

package event

import (
	"sort"
	"strconv"
	"strings"
)

// sources is the set of recorded Source strings: for each stream the numbers as
// ranges. There are few ranges, because numbers come mostly in order.
type sources map[string][]span

// span is the range of numbers from First to Last.
type span struct{ First, Last uint64 }

// splitSource splits "<stream>:<number>". A string of another form is a stream
// by itself, with the number 0.
func splitSource(s string) (stream string, number uint64) {
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		if n, err := strconv.ParseUint(s[i+1:], 10, 64); err == nil {
			return s[:i], n
		}
	}
	return s, 0
}

func (s sources) has(source string) bool {
	stream, n := splitSource(source)
	spans := s[stream]
	i := sort.Search(len(spans), func(i int) bool { return spans[i].Last >= n })
	return i < len(spans) && spans[i].First <= n
}

func (s sources) add(source string) {
	stream, n := splitSource(source)
	s[stream] = addSpan(s[stream], span{n, n})
}

func (s sources) merge(other sources) {
	for stream, spans := range other {
		for _, sp := range spans {
			if sp.First <= sp.Last { // otherwise the range is damaged
				s[stream] = addSpan(s[stream], sp)
			}
		}
	}
}

// addSpan keeps the list sorted, without overlaps or neighbours.
func addSpan(spans []span, add span) []span {
	if n := len(spans); n > 0 && spans[n-1].before(add.First) && spans[n-1].Last+1 == add.First {
		spans[n-1].Last = add.Last
		return spans
	}
	var out []span
	i := 0
	for ; i < len(spans) && spans[i].before(add.First) && spans[i].Last+1 < add.First; i++ {
		out = append(out, spans[i])
	}
	for ; i < len(spans) && !(add.before(spans[i].First) && add.Last+1 < spans[i].First); i++ {
		add = span{min(add.First, spans[i].First), max(add.Last, spans[i].Last)}
	}
	return append(append(out, add), spans[i:]...)
}

// before reports whether the span ends before n. If it does, Last+1 does not
// overflow.
func (s span) before(n uint64) bool { return s.Last < n }
