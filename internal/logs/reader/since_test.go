// SPDX-License-Identifier: Apache-2.0

package reader

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/logs/format"
)

// sized writes a log of lines one second apart, of all lengths, and returns the
// beginning of each line's text.
func sized(t *testing.T, path string, lines int) (starts []string) {
	t.Helper()
	l := writer(t, format.Config{Path: path})
	random := rand.New(rand.NewPCG(1, 2))
	for i := range lines {
		text := time.Duration(i).String() + " "
		starts = append(starts, text)
		length := random.IntN(200)
		if i%50 == 0 {
			length = random.IntN(15 << 10)
		}
		l.Write(format.Stdout, noon.Add(time.Duration(i)*time.Second), []byte(text+strings.Repeat("x", length)+"\n"))
	}
	l.Close()
	return starts
}

func TestSinceBeginsWithTheFirstLineThatIsNotOlder(t *testing.T) {
	cfg := Config{Driver: "", Path: filepath.Join(t.TempDir(), "log")}
	const lines = 3000
	starts := sized(t, cfg.Path, lines)
	for _, first := range []int{0, 1, 2, 17, 999, 1500, 1501, 2900, 2998, 2999, 3000, 5000} {
		for _, early := range []time.Duration{0, time.Millisecond} {
			got := rest(t, open2(t, cfg, both(Options{Tail: -1, Since: noon.Add(time.Duration(first)*time.Second - early)})))
			want := starts[min(first, lines):]
			if len(got) != len(want) {
				t.Fatalf("since line %d: %d lines, want %d", first, len(got), len(want))
			}
			for i := range want {
				if !strings.HasPrefix(got[i], "stdout:"+want[i]) {
					t.Fatalf("since line %d: line %d is %.40q, want %q", first, i, got[i], want[i])
				}
			}
		}
	}
}

func TestSinceReadsLittleOfALongLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	sized(t, path, 20000)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for _, second := range []int{-1, 0, 5000, 19999, 30000} {
		counted := &countingReader{ReaderAt: f}
		from, err := (&jsonDecoder{}).since(counted, st.Size(), noon.Add(time.Duration(second)*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if counted.bytes > 640<<10 {
			t.Errorf("since second %d: %d of %d bytes were read", second, counted.bytes, st.Size())
		}
		if second > 19999 && st.Size()-from > nearEnough {
			t.Errorf("beyond the end: %d bytes are read sequentially", st.Size()-from)
		}
	}
}

// Unreadable records do not hide the lines after them.
func TestSinceFindsLinesBesideDamage(t *testing.T) {
	cfg := Config{Driver: "", Path: filepath.Join(t.TempDir(), "log")}
	const lines = 3000
	sized(t, cfg.Path, lines)
	whole, err := os.ReadFile(cfg.Path)
	if err != nil {
		t.Fatal(err)
	}
	middle := bytes.IndexByte(whole[len(whole)/2:], '\n') + len(whole)/2 + 1
	for name, damaged := range map[string][]byte{
		"a line of zeros":      append(append(bytes.Clone(whole[:middle]), "\x00\x00\x00\n"...), whole[middle:]...),
		"half a line":          append(append(bytes.Clone(whole[:middle]), `{"log":"x`+"\n"...), whole[middle:]...),
		"much that is no line": append(append(bytes.Clone(whole[:middle]), append(bytes.Repeat([]byte("#"), 200<<10), '\n')...), whole[middle:]...),
	} {
		if err := os.WriteFile(cfg.Path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, first := range []int{0, 100, 1400, 1600, 2999, 3000} {
			got := rest(t, open2(t, cfg, both(Options{Tail: -1, Since: noon.Add(time.Duration(first) * time.Second)})))
			if want := lines - first; len(got) != want {
				t.Errorf("%s, since line %d: %d lines, want %d", name, first, len(got), want)
			}
		}
	}
}
