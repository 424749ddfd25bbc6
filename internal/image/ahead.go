// SPDX-License-Identifier: Apache-2.0

package image

import (
	"hash"
	"io"
	"sync"
	"sync/atomic"
)

const (
	aheadBlock  = 128 << 10 // bytes
	aheadBlocks = 8         // of one stream in memory
)

// ahead reads a stream in a goroutine and hashes it in another one, so that a
// layer is decompressed, hashed and written to files side by side. It holds at
// most aheadBlocks blocks.
type ahead struct {
	free   chan *block // blocks that may be filled
	filled chan *block // closed after the last one
	err    error       // why there are no more; set before filled is closed
	stop   chan struct{}
	ended  sync.WaitGroup // the goroutines

	now  *block // is being returned by Read
	rest []byte // of now
}

// block is a part of the stream. It is free again when it was read and hashed.
type block struct {
	buf   [aheadBlock]byte
	n     int
	users atomic.Int32
}

// spareBlocks are blocks of earlier streams.
var spareBlocks = sync.Pool{New: func() any { return new(block) }}

// readAhead begins to read r. Close must be called before r is closed.
func readAhead(r io.Reader, sum hash.Hash) *ahead {
	a := &ahead{free: make(chan *block, aheadBlocks), filled: make(chan *block, aheadBlocks), stop: make(chan struct{})}
	for range aheadBlocks {
		a.free <- nil // allocated when it is needed: most layers are small
	}
	unhashed := make(chan *block, aheadBlocks)
	a.ended.Go(func() {
		defer close(unhashed)
		defer close(a.filled)
		a.err = a.fill(r, unhashed)
	})
	a.ended.Go(func() {
		for b := range unhashed {
			sum.Write(b.buf[:b.n])
			a.release(b)
		}
	})
	return a
}

// fill reads until the end of r, an error, or Close.
func (a *ahead) fill(r io.Reader, unhashed chan<- *block) error {
	for {
		var b *block
		select {
		case b = <-a.free:
		case <-a.stop:
			return io.ErrClosedPipe
		}
		if b == nil {
			b = spareBlocks.Get().(*block)
		}
		var err error
		// io.ReadFull would return the same error for a stream that is cut off as for one
		// that ends.
		for b.n = 0; err == nil && b.n < len(b.buf); {
			var n int
			n, err = r.Read(b.buf[b.n:])
			b.n += n
		}
		if b.n > 0 {
			b.users.Store(2)
			unhashed <- b // never blocks: there are no more blocks than places
			a.filled <- b
		}
		if err != nil {
			return err
		}
	}
}

func (a *ahead) release(b *block) {
	if b.users.Add(-1) == 0 {
		a.free <- b
	}
}

// Read returns the stream's bytes, and its error or io.EOF at the end.
func (a *ahead) Read(p []byte) (int, error) {
	if len(a.rest) == 0 {
		if a.now != nil {
			a.release(a.now)
			a.now = nil
		}
		b, ok := <-a.filled
		if !ok {
			return 0, a.err
		}
		a.now, a.rest = b, b.buf[:b.n]
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Close ends the goroutines. If Read has returned io.EOF before, the hash has the
// whole stream. It is idempotent.
func (a *ahead) Close() error {
	select {
	case <-a.stop:
	default:
		close(a.stop)
	}
	a.ended.Wait()
	for {
		select {
		case b := <-a.free:
			if b != nil {
				spareBlocks.Put(b)
			}
		default:
			return nil
		}
	}
}
