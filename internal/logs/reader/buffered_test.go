// SPDX-License-Identifier: Apache-2.0

package reader

import (
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"holdfast/internal/logs/format"
)

// A caller that takes what is read already, and only then waits, gets each line
// once and in order, within the bounds that it asked for.
func TestBufferedAndNextTogetherGiveEachLineOnce(t *testing.T) {
	for _, driver := range drivers {
		for _, c := range []struct {
			opts        Options
			first, last int
		}{
			{Options{Tail: -1}, 0, 9999},
			{Options{Tail: 50}, 9950, 9999},
			{Options{Tail: -1, Since: noon.Add(7 * time.Second)}, 7, 9999},
			{Options{Tail: -1, Until: noon.Add(123 * time.Second)}, 0, 123},
		} {
			t.Run(fmt.Sprintf("%s/%d-%d", driver, c.first, c.last), func(t *testing.T) {
				cfg := Config{Driver: driver, Path: filepath.Join(t.TempDir(), "log")}
				l := writer(t, format.Config{Driver: driver, Path: cfg.Path, MaxSize: 100_000, MaxFiles: 50})
				for i := range 10_000 {
					l.Write(format.Stdout, noon.Add(time.Duration(i)*time.Second), []byte(strconv.Itoa(i)+"\n"))
					l.Write(format.Stderr, noon.Add(time.Duration(i)*time.Second), []byte("not asked for\n"))
				}
				c.opts.Stdout = true
				if c.opts.Tail > 0 {
					c.opts.Tail *= 2 // it counts both streams
				}
				r := open2(t, cfg, c.opts)
				want, buffered := c.first, 0
				for {
					line, ok := r.Buffered()
					if ok {
						buffered++
					} else {
						var err error
						if line, err = r.Next(); err == io.EOF {
							break
						} else if err != nil {
							t.Fatal(err)
						}
					}
					if string(line.Line) != strconv.Itoa(want)+"\n" {
						t.Fatalf("got %q, want %d", line.Line, want)
					}
					want++
				}
				if want != c.last+1 {
					t.Errorf("ended before %d, want the end after %d", want, c.last)
				}
				if buffered == 0 {
					t.Error("no line was buffered")
				}
				if _, ok := r.Buffered(); ok {
					t.Error("a line after the end")
				}
			})
		}
	}
}

// Buffered returns at once when a followed log has nothing more, and also before
// the first read.
func TestBufferedNeverWaits(t *testing.T) {
	cfg := Config{Path: filepath.Join(t.TempDir(), "log")}
	l := writer(t, format.Config{Path: cfg.Path})
	r := open2(t, cfg, both(Options{Tail: -1, Follow: true}))
	if line, ok := r.Buffered(); ok {
		t.Fatalf("a line of an empty log: %q", line.Line)
	}
	l.Write(format.Stdout, noon, []byte("one\ntwo\n"))
	next(t, r, "one\n")
	if line, ok := r.Buffered(); !ok || string(line.Line) != "two\n" {
		t.Fatalf("%q, %v, want the second line", line.Line, ok)
	}
	if line, ok := r.Buffered(); ok {
		t.Fatalf("a third line: %q", line.Line)
	}
	l.Write(format.Stdout, noon, []byte("three\n"))
	next(t, r, "three\n")
}
