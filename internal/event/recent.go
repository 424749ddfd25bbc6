// SPDX-License-Identifier: Apache-2.0

package event

// Bounds of the recent events that are kept: their number, and the bytes of
// their lines.
const (
	recentEntries = 1024
	recentBytes   = 1 << 20
)

// recent holds the events that were recorded last. Subscribers that keep up
// share one copy of each, and need neither a file nor a system call. Events are
// numbered from 1 in the order in which this process recorded them.
type recent struct {
	next  uint64 // number of the next event; that of the first entry is next-len(entries)
	list  []recorded
	bytes int
}

// recorded is an event with the end and the length of its line.
type recorded struct {
	m    Message
	end  Position
	size int
}

func (r *recent) add(m Message, end Position, size int) {
	r.list = append(r.list, recorded{m, end, size})
	r.next++
	r.bytes += size
	drop := 0
	for len(r.list)-drop > 1 && (len(r.list)-drop > recentEntries || r.bytes > recentBytes) {
		r.bytes -= r.list[drop].size
		drop++
	}
	clear(r.list[:drop])
	r.list = r.list[drop:]
}

// at returns the event of a number; false if it is no longer kept.
func (r *recent) at(number uint64) (recorded, bool) {
	first := r.next - uint64(len(r.list))
	if number < first || number >= r.next {
		return recorded{}, false
	}
	return r.list[number-first], true
}

// forget drops all events, because another process records from now on.
func (r *recent) forget() { r.list, r.bytes = nil, 0 }
