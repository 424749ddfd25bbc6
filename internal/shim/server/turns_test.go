// SPDX-License-Identifier: Apache-2.0

package server

import (
	"os"
	"testing"
)

// The stream that was written to first must come first, whatever was written and
// read before.
func TestTurnsGoByWhatWasWrittenFirst(t *testing.T) {
	var read, write [2]*os.File
	for i := range read {
		var err error
		if read[i], write[i], err = os.Pipe(); err != nil {
			t.Fatal(err)
		}
		defer read[i].Close()
		defer write[i].Close()
	}
	order := newTurns(read[:])
	if order == nil {
		t.Fatal("no turns")
	}
	defer order.close()
	put := func(i int) {
		t.Helper()
		if _, err := write[i].WriteString("x"); err != nil {
			t.Fatal(err)
		}
	}
	take := func(i int) {
		t.Helper()
		if _, err := read[i].Read(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
	}
	want := func(i int) {
		t.Helper()
		for range 3 { // repeated calls return the same
			if first := order.first(); first != i {
				t.Fatalf("first is %d, want %d", first, i)
			}
		}
	}
	want(-1)
	for _, o := range [][2]int{{0, 1}, {1, 0}, {1, 0}, {0, 1}} {
		put(o[0])
		put(o[1])
		put(o[0])
		want(o[0])
		take(o[0])
		want(o[1])
		put(o[0]) // a second time, later than the other stream
		want(o[1])
		take(o[1])
		want(o[0])
		take(o[0])
		want(-1)
	}
	write[0].Close() // EOF must not count as data
	want(-1)
	put(1)
	want(1)
}
