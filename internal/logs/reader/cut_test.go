// SPDX-License-Identifier: Apache-2.0

package reader

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/logs/format"
)

// FuzzLogsCutAnywhere cuts a log at any offset, as a full disk or a user may,
// appends any bytes, and lets the container write on. Reading ends, and finds
// all lines before the cut.
func FuzzLogsCutAnywhere(f *testing.F) {
	f.Add(uint16(10), []byte("\n"), byte(3))
	f.Add(uint16(0), []byte{}, byte(0))
	f.Add(uint16(200), []byte("\x00\x00\x00\xff"), byte(1))
	f.Add(uint16(333), []byte(`{"log":"x`), byte(9))
	f.Add(uint16(65535), []byte("\xff\xff\xff\xff\xff\xff\xff\xff"), byte(2))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, cut uint16, behind []byte, more byte) {
		for _, driver := range drivers {
			path := filepath.Join(dir, driver)
			for _, old := range []string{path, path + ".1"} {
				if err := os.Remove(old); err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
			}
			var whole []int64 // whole[n] is the size with n lines
			l, err := format.Open(format.Config{Driver: driver, Path: path, MaxSize: -1})
			if err != nil {
				t.Fatal(err)
			}
			for i := range 8 {
				l.Write(format.Stdout, noon, fmt.Appendf(nil, "line %d %s\n", i, strings.Repeat("é\"", i*7)))
				st, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				whole = append(whole, st.Size())
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			at := min(int64(cut), whole[len(whole)-1])
			if err := os.Truncate(path, at); err != nil {
				t.Fatal(err)
			}
			file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			file.Write(behind)
			file.Close()
			if more > 0 { // the next run continues the file
				if l, err = format.Open(format.Config{Driver: driver, Path: path, MaxSize: -1}); err != nil {
					t.Fatal(err)
				}
				for i := range int(more) % 4 {
					l.Write(format.Stderr, noon, fmt.Appendf(nil, "later %d\n", i))
				}
				l.Close()
			}
			kept := 0
			for kept < len(whole) && whole[kept] <= at {
				kept++
			}
			got := rest(t, open2(t, Config{Driver: driver, Path: path}, both(Options{Tail: -1})))
			if len(got) < kept {
				t.Fatalf("%s: %d lines of %d before the cut at %d: %q", driver, len(got), kept, at, got)
			}
			for i, line := range got[:kept] {
				if !strings.HasPrefix(line, fmt.Sprintf("stdout:line %d ", i)) {
					t.Fatalf("%s: line %d is %q", driver, i, line)
				}
			}
			for _, tail := range []int{0, 1, 3, 100} {
				rest(t, open2(t, Config{Driver: driver, Path: path}, both(Options{Tail: tail, Since: noon})))
			}
		}
	})
}
