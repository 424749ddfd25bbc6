// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
	"testing/synctest"
)

// Whatever the size of a stream and of its reads, the reader gets all of it, and
// the digest is that of all of it.
func TestReadAheadGivesAndHashesTheWholeStream(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{0, 1, aheadBlock - 1, aheadBlock, aheadBlock + 1, 20*aheadBlock + 5} {
		text := make([]byte, size)
		for i := range text {
			text[i] = byte(random.Uint32())
		}
		for name, r := range map[string]io.Reader{
			"whole": bytes.NewReader(text), "halves": iotest.HalfReader(bytes.NewReader(text)),
			"data with the error": iotest.DataErrReader(bytes.NewReader(text)),
		} {
			sum := sha256.New()
			a := readAhead(r, sum)
			got, err := io.ReadAll(iotest.HalfReader(a))
			if err != nil || !bytes.Equal(got, text) {
				t.Errorf("%d bytes, %s: read %d bytes, equal: %v, %v", size, name, len(got), bytes.Equal(got, text), err)
			}
			a.Close()
			if want := sha256.Sum256(text); !bytes.Equal(sum.Sum(nil), want[:]) {
				t.Errorf("%d bytes, %s: wrong digest", size, name)
			}
			a.Close() // once more
		}
	}
}

// An error comes after the bytes before it, and is not taken for the end.
func TestReadAheadReturnsTheStreamsError(t *testing.T) {
	for _, want := range []error{io.ErrUnexpectedEOF, errors.New("cut off")} {
		for _, size := range []int{0, 10, aheadBlock, 3*aheadBlock + 7} {
			a := readAhead(io.MultiReader(bytes.NewReader(make([]byte, size)), iotest.ErrReader(want)), sha256.New())
			got, err := io.ReadAll(a)
			if err != want || len(got) != size {
				t.Errorf("%d bytes, then %v: read %d bytes, then %v", size, want, len(got), err)
			}
			a.Close()
		}
	}
}

// Close ends the goroutines when the reader gives up early. A leftover goroutine
// fails the bubble.
func TestReadAheadEndsWithoutBeingRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := readAhead(zeros{}, sha256.New())
		if _, err := io.ReadFull(a, make([]byte, 3*aheadBlock/2)); err != nil {
			t.Fatal(err)
		}
		a.Close()
	})
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
