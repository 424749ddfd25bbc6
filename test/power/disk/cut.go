// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"math/rand/v2"
)

// chunk is the size of the pieces in which contents are kept.
const chunk = 4096

// Request is a request to a disk: a write, or without data a flush.
type Request struct {
	At   int64 // in bytes, a multiple of Sector
	Data []byte
}

// IsFlush reports whether the request is a flush. Every write that was answered
// before is on the disk when a flush is answered.
func (r Request) IsFlush() bool { return r.Data == nil }

// Content is the content of a disk, in pieces of 4 KiB by number. Other pieces
// are zero. A piece may be shared and must not be changed.
type Content map[int64][]byte

// Log is what a disk was asked to do.
type Log struct {
	Size     int64   // of the disk, in bytes
	Base     Content // before the first request
	Requests []Request
	// Whole is what the disk writes as a whole, in bytes: a multiple of Sector.
	Whole int
}

// sparse returns the pieces of data that are not zero.
func sparse(data []byte) Content {
	c := Content{}
	for i := int64(0); i*chunk < int64(len(data)); i++ {
		piece := data[i*chunk : min((i+1)*chunk, int64(len(data)))]
		for _, b := range piece {
			if b != 0 {
				c[i] = append([]byte(nil), piece...)
				break
			}
		}
	}
	return c
}

// write writes data into the content.
func (c Content) write(at int64, data []byte) {
	for len(data) > 0 {
		i, from := at/chunk, at%chunk
		piece := make([]byte, chunk)
		copy(piece, c[i])
		n := copy(piece[from:], data)
		c[i] = piece
		at, data = at+int64(n), data[n:]
	}
}

// Fate is what becomes of the writes that were not flushed when the power was
// lost.
type Fate int

// A disk may do any of these.
const (
	// DropAll loses all of them.
	DropAll Fate = iota
	// KeepAll loses none, as if the disk had no cache.
	KeepAll
	// DropSome loses some of them, whatever their order.
	DropSome
	// DropOld loses the older ones and keeps the newer ones.
	DropOld
	// Tear loses parts of them, in units of Log.Whole.
	Tear
	fates
)

// String returns the name of the fate.
func (f Fate) String() string {
	return [...]string{"all unflushed writes lost", "no write lost", "some unflushed writes lost", "older unflushed writes lost", "some sectors of unflushed writes lost"}[f]
}

// AnyFate picks a fate.
func AnyFate(r *rand.Rand) Fate { return Fate(r.IntN(int(fates))) }

// Cutter plays a log forward and gives the contents that a loss of power leaves.
type Cutter struct {
	log *Log
	// durable has the effect of the requests before flushed, and of no other.
	durable Content
	flushed int
	next    int // the requests before were looked at for flushes
}

// NewCutter returns a cutter for a log.
func NewCutter(l *Log) *Cutter {
	c := &Cutter{log: l, durable: Content{}}
	for i, piece := range l.Base {
		c.durable[i] = piece
	}
	return c
}

// Cut returns a content that the disk may have when the power is lost after the
// first n requests. n must not be smaller than in the call before.
func (c *Cutter) Cut(n int, fate Fate, r *rand.Rand) Content {
	for ; c.next < n; c.next++ {
		if !c.log.Requests[c.next].IsFlush() {
			continue
		}
		for ; c.flushed < c.next; c.flushed++ {
			if q := c.log.Requests[c.flushed]; !q.IsFlush() {
				c.durable.write(q.At, q.Data)
			}
		}
	}
	out := make(Content, len(c.durable))
	for i, piece := range c.durable {
		out[i] = piece
	}
	var loose []Request
	for _, q := range c.log.Requests[c.flushed:n] {
		if !q.IsFlush() {
			loose = append(loose, q)
		}
	}
	// A cache has one version of a sector. So where writes overlap, the newest
	// that reached the disk is there, and the order is that of the log.
	part := r.Float64()
	for i, q := range loose {
		keep := false
		switch fate {
		case DropAll:
		case KeepAll:
			keep = true
		case DropSome:
			keep = r.Float64() < part
		case DropOld:
			keep = float64(i) >= part*float64(len(loose))
		case Tear:
			for at := 0; at < len(q.Data); at += c.log.Whole {
				if r.Float64() < part {
					out.write(q.At+int64(at), q.Data[at:min(at+c.log.Whole, len(q.Data))])
				}
			}
		}
		if keep {
			out.write(q.At, q.Data)
		}
	}
	return out
}
