// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
)

// fill writes results of steps.
func fill(t *testing.T, s *bboltcachestorage.Store, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if err := s.AddResult(fmt.Sprintf("step%05d", i), solver.CacheResult{ID: fmt.Sprint(i), CreatedAt: time.Unix(int64(i), 0)}); err != nil {
			t.Fatal(err)
		}
	}
}

// usable reads all of an index, and writes.
func usable(s *bboltcachestorage.Store) (steps int, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v", v)
		}
	}()
	err = s.Walk(func(id string) error {
		steps++
		return s.WalkResults(id, func(solver.CacheResult) error { return nil })
	})
	if err == nil {
		err = s.AddResult("another", solver.CacheResult{ID: "another"})
	}
	return steps, err
}

// torn returns an index of which one page was not written, so that it can be opened,
// and a build would panic.
func torn(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), cacheFile)
	s, err := bboltcachestorage.NewStore(path)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, s, 0, 300)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const page, leaf = 4096, 2
	for at := len(whole) - page; at >= 2*page; at -= page {
		if binary.LittleEndian.Uint16(whole[at+8:]) != leaf {
			continue
		}
		b := append([]byte(nil), whole...)
		clear(b[at : at+page])
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := openDatabase(path, bboltcachestorage.NewStore); err == nil {
			n, err := usable(s)
			s.Close()
			if err != nil && n < 300 {
				return b
			}
		}
		os.Remove(path + ".damaged")
	}
	t.Fatal("no page whose loss is noticed late")
	return nil
}

func TestIndexThatWasOpenAtALossOfPowerIsSetAside(t *testing.T) {
	b := torn(t)
	state := t.TempDir()
	s, err := openCache(state, "boot 1")
	if err != nil {
		t.Fatal(err)
	}
	fill(t, s, 0, 10)
	s.Close()
	// The power is lost before closedCache.
	if err := os.WriteFile(filepath.Join(state, cacheFile), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err = openCache(state, "boot 2"); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if n, err := usable(s); n != 0 || err != nil {
		t.Errorf("%d steps, %v", n, err)
	}
	if _, err := os.Stat(filepath.Join(state, cacheFile+".damaged")); err != nil {
		t.Error(err)
	}
}

func TestDatabaseThatWasDamagedWhileItWasOpenIsSetAside(t *testing.T) {
	b := torn(t)
	for name, damaged := range map[string][]byte{"a page is gone": b, "the end is cut off": b[:4096*3], "it is empty": {}, "it is none": []byte(strings.Repeat("damage ", 5000))} {
		for _, file := range []string{cacheFile, metadataFile, historyFile} {
			t.Run(name+", "+file, func(t *testing.T) {
				state := t.TempDir()
				path := filepath.Join(state, file)
				if err := os.WriteFile(filepath.Join(state, openMark), []byte("boot 1"), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, damaged, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := checkDatabases(state); err != nil {
					t.Fatal(err)
				}
				if _, err := os.Stat(path); err == nil {
					t.Error("it was not set aside")
				}
				if got, err := os.ReadFile(path + ".damaged"); err != nil || !bytes.Equal(got, damaged) {
					t.Errorf("%d bytes were set aside, want %d: %v", len(got), len(damaged), err)
				}
			})
		}
	}
}

func TestIndexThatWasClosedOrWhoseProcessWasKilledStays(t *testing.T) {
	state := t.TempDir()
	for i, closed := range []bool{true, false, true} {
		// The second process is killed, and the third is of the same boot.
		boot := []string{"boot 1", "boot 2", "boot 2"}[i]
		if err := checkDatabases(state); err != nil {
			t.Fatal(err)
		}
		s, err := openCache(state, boot)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := usable(s); n != map[int]int{0: 0, 1: 11, 2: 11}[i] || err != nil {
			t.Errorf("process %d finds %d steps, %v", i, n, err)
		}
		if i == 0 {
			fill(t, s, 0, 10)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if closed {
			if err := closedCache(state); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(state, cacheFile+".damaged")); err == nil {
		t.Error("a good index was set aside")
	}
}
