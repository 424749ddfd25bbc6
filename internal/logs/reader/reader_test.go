// SPDX-License-Identifier: Apache-2.0

package reader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"holdfast/internal/logs/format"
)

var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

var drivers = []string{format.DriverJSON, format.DriverLocal}

func writer(t testing.TB, cfg format.Config) *format.Log {
	t.Helper()
	l, err := format.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func open2(t testing.TB, cfg Config, opts Options) *Reader {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	r, err := Open(ctx, cfg, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// rest reads to the end and returns "stream:text" for each line.
func rest(t testing.TB, r *Reader) []string {
	t.Helper()
	var out []string
	for {
		line, err := r.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, line.Source+":"+string(line.Line))
	}
}

func expect(t testing.TB, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func next(t testing.TB, r *Reader, want string) {
	t.Helper()
	line, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	if string(line.Line) != want {
		t.Fatalf("got %q, want %q", line.Line, want)
	}
}

func both(o Options) Options {
	o.Stdout, o.Stderr = true, true
	return o
}

func TestReadsWhatWasWritten(t *testing.T) {
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			cfg := Config{Driver: driver, Path: filepath.Join(t.TempDir(), "log")}
			l := writer(t, format.Config{Driver: driver, Path: cfg.Path, Attrs: map[string]string{"tag": `x","time":"`}})
			text := "plain\n\n\"quoted\" \\ <&> \t\r \u2028 世界 \x00\x1b\n"
			l.Write(format.Stdout, noon, []byte(text))
			l.Write(format.Stderr, noon.Add(time.Nanosecond), []byte("err\nno newline"))
			l.End(format.Stderr)
			r := open2(t, cfg, both(Options{Tail: -1}))
			got := rest(t, r)
			expect(t, got, "stdout:plain\n", "stdout:\n", "stdout:\"quoted\" \\ <&> \t\r \u2028 世界 \x00\x1b\n", "stderr:err\n", "stderr:no newline")
			line, err := open2(t, cfg, both(Options{Tail: -1})).Next()
			if err != nil || !line.Time.Equal(noon) {
				t.Errorf("time %v, %v", line.Time, err)
			}
			if driver == format.DriverJSON && line.Attrs["tag"] != `x","time":"` {
				t.Errorf("attributes %v", line.Attrs)
			}
			expect(t, rest(t, open2(t, cfg, Options{Tail: -1, Stderr: true})), "stderr:err\n", "stderr:no newline")
		})
	}
}

func TestSplitLineHasOneNewlineAtItsEnd(t *testing.T) {
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			cfg := Config{Driver: driver, Path: filepath.Join(t.TempDir(), "log")}
			l := writer(t, format.Config{Driver: driver, Path: cfg.Path})
			text := strings.Repeat("x", 3*format.MaxLine+5) + "\n"
			l.Write(format.Stdout, noon, []byte(text))
			got := rest(t, open2(t, cfg, both(Options{Tail: -1})))
			if len(got) != 4 || strings.ReplaceAll(strings.Join(got, ""), "stdout:", "") != text {
				t.Errorf("%d parts", len(got))
			}
		})
	}
}

func TestTailSinceUntil(t *testing.T) {
	for _, driver := range drivers {
		for _, compress := range []bool{false, true} {
			t.Run(fmt.Sprint(driver, compress), func(t *testing.T) {
				cfg := Config{Driver: driver, Path: filepath.Join(t.TempDir(), "log")}
				l := writer(t, format.Config{Driver: driver, Path: cfg.Path, MaxSize: 2000, MaxFiles: 100, Compress: compress})
				const lines = 200
				for i := range lines {
					l.Write(format.Stdout, noon.Add(time.Duration(i)*time.Second), []byte(strconv.Itoa(i)+"\n"))
				}
				l.Close()
				if _, err := os.Stat(cfg.Path + ".1"); err != nil {
					if _, err := os.Stat(cfg.Path + ".1.gz"); err != nil {
						t.Fatal("no rotation")
					}
				}
				check := func(first, count int, o Options) {
					t.Helper()
					got := rest(t, open2(t, cfg, both(o)))
					if len(got) != count {
						t.Fatalf("%+v: %d lines, want %d", o, len(got), count)
					}
					for i, line := range got {
						if line != fmt.Sprintf("stdout:%d\n", first+i) {
							t.Fatalf("%+v: line %d is %q", o, i, line)
						}
					}
				}
				for _, n := range []int{0, 1, 2, 10, 30, 100, 199, 200, 1000} {
					count := min(n, lines)
					check(lines-count, count, Options{Tail: n})
				}
				check(0, lines, Options{Tail: -1})
				check(150, 50, Options{Tail: -1, Since: noon.Add(150 * time.Second)})
				check(0, 51, Options{Tail: -1, Until: noon.Add(50 * time.Second)})
				check(190, 5, Options{Tail: 10, Until: noon.Add(194 * time.Second)})
				check(195, 5, Options{Tail: 10, Since: noon.Add(195 * time.Second)})
			})
		}
	}
}

// TestFollowMissesAndRepeatsNothingOverRotation: readers follow while the log
// is rotated hundreds of times and compressed.
func TestFollowMissesAndRepeatsNothingOverRotation(t *testing.T) {
	for _, driver := range drivers {
		for _, compress := range []bool{false, true} {
			t.Run(fmt.Sprint(driver, compress), func(t *testing.T) {
				cfg := Config{Driver: driver, Path: filepath.Join(t.TempDir(), "log")}
				l := writer(t, format.Config{Driver: driver, Path: cfg.Path, MaxSize: 20_000, MaxFiles: 1000, Compress: compress})
				done := make(chan struct{})
				const lines = 30_000
				const readers = 3
				result := make(chan error, readers)
				for range readers {
					r := open2(t, cfg, both(Options{Tail: -1, Follow: true, Done: done}))
					go func() {
						for i := 0; ; i++ {
							line, err := r.Next()
							if err == io.EOF && i == lines {
								result <- nil
								return
							}
							if err != nil {
								result <- fmt.Errorf("after %d lines: %w", i, err)
								return
							}
							if string(line.Line) != fmt.Sprintf("line %d\n", i) {
								result <- fmt.Errorf("got %q, want line %d", line.Line, i)
								return
							}
						}
					}()
				}
				for i := 0; i < lines; i++ {
					l.Write(format.Stdout, noon, fmt.Appendf(nil, "line %d\n", i))
					if i%100 == 0 {
						runtime.Gosched()
					}
				}
				l.Close()
				close(done)
				for range readers {
					if err := <-result; err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
}

func TestFollowWaitsForALogThatDoesNotExistYet(t *testing.T) {
	cfg := Config{Driver: format.DriverLocal, Path: filepath.Join(t.TempDir(), "local-logs", "container.log")}
	r := open2(t, cfg, both(Options{Tail: 5, Follow: true}))
	go func() {
		l := writer(t, format.Config{Driver: format.DriverLocal, Path: cfg.Path})
		l.Write(format.Stdout, noon, []byte("hello\n"))
	}()
	next(t, r, "hello\n")
}

func TestLogOfAContainerThatNeverRanIsEmpty(t *testing.T) {
	r := open2(t, Config{Driver: format.DriverJSON, Path: filepath.Join(t.TempDir(), "no", "log")}, both(Options{Tail: -1}))
	expect(t, rest(t, r))
}

func TestFollowEndsWhenTheContainerDoes(t *testing.T) {
	cfg := Config{Driver: format.DriverJSON, Path: filepath.Join(t.TempDir(), "log")}
	l := writer(t, format.Config{Path: cfg.Path})
	done := make(chan struct{})
	r := open2(t, cfg, both(Options{Tail: -1, Follow: true, Done: done}))
	l.Write(format.Stdout, noon, []byte("a\n"))
	next(t, r, "a\n")
	l.Write(format.Stdout, noon, []byte("b\n"))
	close(done)
	expect(t, rest(t, r), "stdout:b\n")
}

func TestFollowEndsWithItsContextAndAtUntil(t *testing.T) {
	cfg := Config{Driver: format.DriverJSON, Path: filepath.Join(t.TempDir(), "log")}
	writer(t, format.Config{Path: cfg.Path})
	ctx, cancel := context.WithCancel(context.Background())
	r, err := Open(ctx, cfg, both(Options{Tail: -1, Follow: true}))
	if err != nil {
		t.Fatal(err)
	}
	go cancel()
	if _, err := r.Next(); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	r = open2(t, cfg, both(Options{Tail: -1, Follow: true, Until: time.Now().Add(time.Millisecond)}))
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("got %v", err)
	}
}

func TestHalfALineIsAwaitedAndMayBeCutOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	cfg := Config{Driver: format.DriverJSON, Path: path}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	put := func(s string) {
		if _, err := f.WriteString(s); err != nil {
			t.Error(err)
		}
	}
	const a = `{"log":"a\n","stream":"stdout","time":"2026-03-04T12:00:00Z"}` + "\n"
	put(a + `{"log":"b\n","stre`)
	expect(t, rest(t, open2(t, cfg, both(Options{Tail: -1}))), "stdout:a\n")
	expect(t, rest(t, open2(t, cfg, both(Options{Tail: 1}))), "stdout:a\n")

	r := open2(t, cfg, both(Options{Tail: -1, Follow: true}))
	next(t, r, "a\n")
	go put(`am":"stdout","time":"2026-03-04T12:00:00Z"}` + "\n")
	next(t, r, "b\n")

	// A partial line of a writer that died. The next writer cuts it off.
	put(`{"log":"lost, and longer than what foll`)
	got := make(chan error, 1)
	go func() {
		line, err := r.Next()
		if err == nil && string(line.Line) != "c\n" {
			err = fmt.Errorf("got %q", line.Line)
		}
		got <- err
	}()
	l := writer(t, format.Config{Path: path})
	l.Write(format.Stdout, noon, []byte("c\n"))
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestUndecodableLineIsLeftOutAndCounted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	text := `{"log":"a\n","stream":"stdout","time":"2026-03-04T12:00:00Z"}` + "\n" +
		strings.Repeat("\x00", 100) + "\n" +
		`{ "time":"2026-03-04T12:00:00Z", "stream":"stderr", "log":"b\u00e9\ud83d\ude00\n" }` + "\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r := open2(t, Config{Driver: format.DriverJSON, Path: path}, both(Options{Tail: -1}))
	expect(t, rest(t, r), "stdout:a\n", "stderr:bé😀\n")
	if r.Skipped() != 1 {
		t.Errorf("Skipped is %d", r.Skipped())
	}
}

func TestNoneDriverCannotBeRead(t *testing.T) {
	_, err := Open(context.Background(), Config{Driver: "none"}, Options{})
	if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "configured logging driver does not support reading") {
		t.Errorf("got %v", err)
	}
}

// There are more readers than inotify instances that a user may have.
func TestManyReadersFollowAtOnce(t *testing.T) {
	cfg := Config{Driver: format.DriverJSON, Path: filepath.Join(t.TempDir(), "log")}
	l := writer(t, format.Config{Path: cfg.Path})
	var readers []*Reader
	for range 300 {
		readers = append(readers, open2(t, cfg, both(Options{Tail: 0, Follow: true})))
	}
	for _, text := range []string{"one\n", "two\n"} {
		l.Write(format.Stdout, noon, []byte(text))
		for _, r := range readers {
			next(t, r, text)
		}
	}
	for _, r := range readers {
		r.Close()
	}
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if n := len(shared.watches); n != 0 {
		t.Errorf("%d watches are left", n)
	}
}

func TestTailReadsOnlyTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l := writer(t, format.Config{Path: path})
	for range 100 {
		l.Write(format.Stdout, noon, []byte(strings.Repeat("0123456789abcdef\n", 4000)))
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	counted := &countingReader{ReaderAt: f}
	d := &jsonDecoder{}
	if _, found, err := d.tail(counted, st.Size(), 100); err != nil || found != 100 {
		t.Fatalf("found %d, %v", found, err)
	}
	if counted.bytes > 128<<10 {
		t.Errorf("%d of %d bytes were read for 100 lines", counted.bytes, st.Size())
	}
}

type countingReader struct {
	io.ReaderAt
	bytes int
}

func (c *countingReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.ReaderAt.ReadAt(p, off)
	c.bytes += n
	return n, err
}

func FuzzDecodersSurviveAnything(f *testing.F) {
	f.Add([]byte(`{"log":"a\n","stream":"stdout","attrs":{"a":"b"},"time":"2026-03-04T12:00:00Z"}` + "\n"))
	f.Add([]byte("\x00\x00\x00\x0a\x0a\x06stdout\x10\x01\x00\x00\x00\x0a"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, driver := range drivers {
			path := filepath.Join(dir, driver)
			if err := os.WriteFile(path, in, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, tail := range []int{-1, 0, 2} {
				rest(t, open2(t, Config{Driver: driver, Path: path}, both(Options{Tail: tail})))
			}
		}
	})
}

func BenchmarkRead(b *testing.B) {
	for _, driver := range drivers {
		b.Run(driver, func(b *testing.B) {
			cfg := Config{Driver: driver, Path: filepath.Join(b.TempDir(), "log")}
			l := writer(b, format.Config{Driver: driver, Path: cfg.Path, MaxSize: -1})
			text := []byte(strings.Repeat(strings.Repeat("abcdefghi ", 10)[:99]+"\n", 10000))
			l.Write(format.Stdout, noon, text)
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				r, err := Open(context.Background(), cfg, both(Options{Tail: -1}))
				if err != nil {
					b.Fatal(err)
				}
				for {
					if _, err := r.Next(); err != nil {
						break
					}
				}
				r.Close()
			}
		})
	}
}
