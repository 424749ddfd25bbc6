// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// TestCutLeavesOnlyWhatADiskMayHold checks each sector of each cut of random logs:
// it has the version of the last flush, or one that was written since.
func TestCutLeavesOnlyWhatADiskMayHold(t *testing.T) {
	const sectors = 64
	r := rand.New(rand.NewPCG(1, 2))
	lost, kept := 0, 0
	for range 50 {
		l := &Log{Size: sectors * Sector, Base: Content{}, Whole: Sector}
		for range 40 {
			if r.IntN(5) == 0 {
				l.Requests = append(l.Requests, Request{})
				continue
			}
			n := 1 + r.IntN(12)
			q := Request{At: int64(r.IntN(sectors-n)) * Sector, Data: make([]byte, n*Sector)}
			for i := range q.Data {
				q.Data[i] = byte(r.Uint32())
			}
			l.Requests = append(l.Requests, q)
		}
		c := NewCutter(l)
		for at := 0; at <= len(l.Requests); at += r.IntN(6) {
			fate := AnyFate(r)
			got := c.Cut(at, fate, r)
			for s := range int64(sectors) {
				have := got.sector(s)
				versions := l.versions(s, at)
				found := -1
				for i, v := range versions {
					if bytes.Equal(v, have) {
						found = i
					}
				}
				if found < 0 {
					t.Fatalf("cut at %d, %s: sector %d has what was never written there since the last flush", at, fate, s)
				}
				if fate == DropAll && found != 0 || fate == KeepAll && found != len(versions)-1 {
					t.Fatalf("cut at %d, %s: sector %d has version %d of %d", at, fate, s, found, len(versions))
				}
				if len(versions) > 1 && found == 0 {
					lost++
				} else if len(versions) > 1 {
					kept++
				}
			}
			if at == len(l.Requests) {
				break
			}
		}
	}
	if lost < 1000 || kept < 1000 {
		t.Errorf("%d unflushed sectors were lost and %d kept", lost, kept)
	}
}

func (c Content) sector(n int64) []byte {
	piece := make([]byte, chunk)
	copy(piece, c[n*Sector/chunk])
	return piece[n*Sector%chunk:][:Sector]
}

// versions returns what a sector may hold after n requests: what the last flush
// made durable, and each write since.
func (l *Log) versions(sector int64, n int) [][]byte {
	out := [][]byte{l.Base.sector(sector)}
	for _, q := range l.Requests[:n] {
		from := sector*Sector - q.At
		switch {
		case q.IsFlush():
			out = out[len(out)-1:]
		case from >= 0 && from < int64(len(q.Data)):
			out = append(out, q.Data[from:from+Sector])
		}
	}
	return out
}
