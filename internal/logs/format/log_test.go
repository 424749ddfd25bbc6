// SPDX-License-Identifier: Apache-2.0

package format

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"
)

var noon = time.Date(2026, 3, 4, 12, 0, 0, 120000000, time.UTC)

type record struct {
	Log    string            `json:"log"`
	Stream string            `json:"stream"`
	Attrs  map[string]string `json:"attrs"`
	Time   time.Time         `json:"time"`
}

func openLog(t testing.TB, cfg Config) *Log {
	t.Helper()
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func contents(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func records(t testing.TB, path string) []record {
	t.Helper()
	var out []record
	for line := range strings.Lines(contents(t, path)) {
		var r record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		out = append(out, r)
	}
	return out
}

func TestJSONFileIsDockersToTheByte(t *testing.T) {
	for _, c := range []struct {
		name  string
		attrs map[string]string
		src   Source
		in    string
		want  string
	}{
		{"plain", nil, Stdout, "hello\n", `{"log":"hello\n","stream":"stdout","time":"2026-03-04T12:00:00.12Z"}` + "\n"},
		{"stderr", nil, Stderr, "hello\n", `{"log":"hello\n","stream":"stderr","time":"2026-03-04T12:00:00.12Z"}` + "\n"},
		{"empty line", nil, Stdout, "\n", `{"log":"\n","stream":"stdout","time":"2026-03-04T12:00:00.12Z"}` + "\n"},
		{"escapes", nil, Stdout, "\"\\<>&\t\r\x00\x1b\x7f\n", `{"log":"\"\\\u003c\u003e\u0026\u0009\r\u0000\u001b` + "\x7f" + `\n","stream":"stdout","time":"2026-03-04T12:00:00.12Z"}` + "\n"},
		{"utf-8", nil, Stdout, "grüße \u2028\u2029 \xff\xc3\n", `{"log":"grüße \u2028\u2029 \ufffd\ufffd\n","stream":"stdout","time":"2026-03-04T12:00:00.12Z"}` + "\n"},
		{"attributes in order", map[string]string{"tag": "a<b", "app": "web"}, Stdout, "x\n",
			`{"log":"x\n","stream":"stdout","attrs":{"app":"web","tag":"a\u003cb"},"time":"2026-03-04T12:00:00.12Z"}` + "\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			l := openLog(t, Config{Driver: DriverJSON, Path: path, Attrs: c.attrs})
			l.Write(c.src, noon, []byte(c.in))
			if got := contents(t, path); got != c.want {
				t.Errorf("\n got %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestLineComesOnceItsEndDoes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l := openLog(t, Config{Path: path})
	l.Write(Stdout, noon, []byte("out-"))
	l.Write(Stderr, noon, []byte("err-"))
	if got := contents(t, path); got != "" {
		t.Fatalf("partial lines were written: %s", got)
	}
	l.Write(Stderr, noon, []byte("a\nerr-b"))
	l.Write(Stdout, noon, []byte("c\n"))
	l.End(Stderr)
	var got []string
	for _, r := range records(t, path) {
		got = append(got, r.Stream+":"+r.Log)
	}
	want := []string{"stderr:err-a\n", "stdout:out-c\n", "stderr:err-b"}
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLongLineIsSplitWithOneTime(t *testing.T) {
	for _, chunk := range []int{1 << 20, 65536, 16384, 16383, 1000, 7} {
		t.Run(strconv.Itoa(chunk), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			l := openLog(t, Config{Path: path})
			in := []byte("first\n" + strings.Repeat("x", 40000) + "\nafter\n" + strings.Repeat("y", MaxLine) + "\n")
			at := noon
			for p := in; len(p) > 0; {
				n := min(chunk, len(p))
				l.Write(Stdout, at, p[:n])
				p = p[n:]
				at = at.Add(time.Second)
			}
			got := records(t, path)
			want := []int{6, MaxLine, MaxLine, 40000 - 2*MaxLine + 1, 6, MaxLine, 1}
			if len(got) != len(want) {
				t.Fatalf("%d records, want %d", len(got), len(want))
			}
			text := ""
			for i, r := range got {
				if len(r.Log) != want[i] {
					t.Errorf("part %d has %d bytes, want %d", i, len(r.Log), want[i])
				}
				text += r.Log
			}
			if text != string(in) {
				t.Error("the parts are not the line")
			}
			if !got[1].Time.Equal(got[3].Time) || !got[5].Time.Equal(got[6].Time) {
				t.Error("the parts of a line differ in time")
			}
		})
	}
}

func TestSplitKeepsRunesWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l := openLog(t, Config{Path: path})
	in := "a" + strings.Repeat("世界", 20000) + "\n"
	l.Write(Stdout, noon, []byte(in))
	text := ""
	for _, r := range records(t, path) {
		text += r.Log
	}
	if text != in {
		t.Error("a rune was cut in two")
	}
}

// entries parses entries of the local format without the code under test.
func entries(t testing.TB, b []byte) (out []map[int]any) {
	t.Helper()
	for len(b) > 0 {
		n := binary.BigEndian.Uint32(b)
		if m := binary.BigEndian.Uint32(b[4+n:]); m != n {
			t.Fatalf("lengths differ: %d and %d", n, m)
		}
		out = append(out, fields(t, b[4:4+n]))
		b = b[8+n:]
	}
	return out
}

func fields(t testing.TB, p []byte) map[int]any {
	m := map[int]any{}
	for len(p) > 0 {
		key, n := binary.Uvarint(p)
		v, k := binary.Uvarint(p[n:])
		p = p[n+k:]
		switch key & 7 {
		case 0:
			m[int(key>>3)] = v
		case 2:
			m[int(key>>3)] = string(p[:v])
			p = p[v:]
		default:
			t.Fatalf("wire type %d", key&7)
		}
	}
	return m
}

func TestLocalEntriesAreDockersProtobuf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "local-logs", "container.log")
	l := openLog(t, Config{Driver: DriverLocal, Path: path})
	l.Write(Stdout, noon, []byte("hello\n\n"))
	l.Write(Stderr, noon, []byte(strings.Repeat("z", MaxLine+10)+"\n"))
	got := entries(t, []byte(contents(t, path)))
	if len(got) != 4 {
		t.Fatalf("%d entries, want 4", len(got))
	}
	if got[0][1] != "stdout" || got[0][2] != uint64(noon.UnixNano()) || got[0][3] != "hello" || got[0][4] != nil {
		t.Errorf("first entry: %v", got[0])
	}
	if got[1][3] != nil {
		t.Errorf("empty line: %v", got[1])
	}
	first, last := fields(t, []byte(got[2][5].(string))), fields(t, []byte(got[3][5].(string)))
	if got[2][1] != "stderr" || got[2][4] != uint64(1) || len(got[2][3].(string)) != MaxLine {
		t.Errorf("first part: %v", got[2])
	}
	if first[1] != nil || last[1] != uint64(1) || first[3] != uint64(1) || last[3] != uint64(2) {
		t.Errorf("metadata: %v, %v", first, last)
	}
	if len(first[2].(string)) != 64 || first[2] != last[2] {
		t.Errorf("ids: %v, %v", first[2], last[2])
	}
}

// all calls each for the lines of a log with its rotated files, oldest first.
func all(t testing.TB, path string, files int, each func(line []byte)) {
	t.Helper()
	read := func(r io.Reader) {
		br := bufio.NewReaderSize(r, 256<<10)
		for {
			line, err := br.ReadBytes('\n')
			if err == io.EOF {
				if len(line) > 0 {
					t.Fatalf("partial line: %q", line)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			each(line)
		}
	}
	for i := files - 1; i >= 0; i-- {
		name := path
		if i > 0 {
			name += "." + strconv.Itoa(i)
		}
		if f, err := os.Open(name); err == nil {
			read(f)
			f.Close()
			continue
		}
		f, err := os.Open(name + ".gz")
		if err != nil {
			continue
		}
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		read(z)
		f.Close()
	}
}

func number(t testing.TB, line []byte) int {
	t.Helper()
	const before = `{"log":"line `
	if !bytes.HasPrefix(line, []byte(before)) {
		t.Fatalf("unexpected record %q", line)
	}
	rest := line[len(before):]
	n, err := strconv.Atoi(string(rest[:bytes.IndexByte(rest, ' ')]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// numbered makes lines of 100 bytes, numbered from first.
func numbered(first, count int) []byte {
	var b []byte
	for i := first; i < first+count; i++ {
		start := len(b)
		b = append(b, "line "...)
		b = strconv.AppendInt(b, int64(i), 10)
		b = append(b, ' ')
		for len(b)-start < 99 {
			b = append(b, byte('a'+i%26))
		}
		b = append(b, '\n')
	}
	return b
}

func TestRotationWithCompressionLosesNoLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	const lines = 1 << 20 // 100 MiB
	l := openLog(t, Config{Path: path, MaxSize: 10 << 20, MaxFiles: 100, Compress: true})
	for i := 0; i < lines; i += 655 {
		l.Write(Stdout, noon, numbered(i, min(655, lines-i)))
	}
	l.Close()
	// Close waits for the compression in progress. The next Open starts the
	// others.
	l = openLog(t, Config{Path: path, MaxSize: 10 << 20, MaxFiles: 100, Compress: true})
	l.zip.done.Wait()
	next := 0
	all(t, path, 100, func(line []byte) {
		if n := number(t, line); n != next {
			t.Fatalf("got line %d, want %d", n, next)
		}
		next++
	})
	if next != lines {
		t.Errorf("%d lines, want %d", next, lines)
	}
	for i := 1; ; i++ {
		name := path + "." + strconv.Itoa(i)
		if _, err := os.Stat(name + ".gz"); err != nil {
			if i < 15 {
				t.Errorf("only %d rotated files", i-1)
			}
			break
		}
		if _, err := os.Stat(name); err == nil {
			t.Errorf("%s stands beside its compressed form", name)
		}
		x, err := ReadExtra(name + ".gz")
		if err != nil || x.Inode == 0 || x.Size > 10<<20 || x.LastTime.IsZero() {
			t.Errorf("%s.gz says %+v, %v", name, x, err)
		}
	}
}

func TestOldestFilesGoAndNoneGrowsOverItsLimit(t *testing.T) {
	for _, compress := range []bool{false, true} {
		for _, files := range []int{1, 2, 3} {
			t.Run(strconv.Itoa(files)+"-"+strconv.FormatBool(compress), func(t *testing.T) {
				dir := t.TempDir()
				path := filepath.Join(dir, "log")
				l := openLog(t, Config{Path: path, MaxSize: 64 << 10, MaxFiles: files, Compress: compress})
				const lines = 10000
				for i := 0; i < lines; i += 10 {
					l.Write(Stdout, noon, numbered(i, 10))
				}
				l.Close()
				first, next := -1, -1
				all(t, path, files, func(line []byte) {
					n := number(t, line)
					if first < 0 {
						first, next = n, n
					}
					if n != next {
						t.Fatalf("got line %d, want %d", n, next)
					}
					next++
				})
				if next != lines {
					t.Errorf("ends with line %d, want %d", next, lines)
				}
				names, _ := os.ReadDir(dir)
				if len(names) > files {
					t.Errorf("%d files, want %d: %v", len(names), files, names)
				}
				for _, n := range names {
					if st, _ := n.Info(); st.Size() > 64<<10 {
						t.Errorf("%s has %d bytes", n.Name(), st.Size())
					}
				}
			})
		}
	}
}

func TestCrashedWritersHalfLineIsCutOff(t *testing.T) {
	dir := t.TempDir()
	for _, driver := range []string{DriverJSON, DriverLocal} {
		whole := filepath.Join(dir, driver)
		l := openLog(t, Config{Driver: driver, Path: whole})
		l.Write(Stdout, noon, []byte("one\n"))
		one := len(contents(t, whole))
		l.Write(Stdout, noon, []byte("two two two\n"))
		l.Close()
		text := contents(t, whole)
		for cut := 0; cut <= len(text); cut++ {
			path := filepath.Join(dir, "torn")
			if err := os.WriteFile(path, []byte(text[:cut]), 0o600); err != nil {
				t.Fatal(err)
			}
			l, err := Open(Config{Driver: driver, Path: path})
			if err != nil {
				t.Fatal(err)
			}
			want := 0
			switch {
			case cut == len(text):
				want = cut
			case cut >= one:
				want = one
			}
			if got := len(contents(t, path)); got != want {
				t.Fatalf("%s cut to %d: repaired to %d bytes, want %d", driver, cut, got, want)
			}
			l.Write(Stdout, noon, []byte("three\n"))
			l.Close()
			if driver == DriverLocal {
				entries(t, []byte(contents(t, path)))
			} else {
				records(t, path)
			}
		}
	}
}

func TestCrashInsideOfRotationIsFinished(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	cfg := Config{Path: path, MaxSize: 4096, MaxFiles: 4, Compress: true}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The active file was renamed and the new one does not exist yet. One
	// compression was interrupted, and another file is not compressed yet.
	write(path+".1", string(records1(t, 0, 10)))
	write(path+".tmp", "")
	write(path+".gz.tmp", "half")
	l := openLog(t, cfg)
	l.zip.done.Wait()
	l.Write(Stdout, noon, numbered(10, 10))
	l.Close()
	for _, name := range []string{".tmp", ".gz.tmp", ".1"} {
		if _, err := os.Stat(path + name); err == nil {
			t.Errorf("%s is left", name)
		}
	}
	next := 0
	all(t, path, 4, func(line []byte) {
		if n := number(t, line); n != next {
			t.Fatalf("got line %d, want %d", n, next)
		}
		next++
	})
	if next != 20 {
		t.Errorf("%d lines, want 20", next)
	}
}

func records1(t *testing.T, first, count int) []byte {
	path := filepath.Join(t.TempDir(), "log")
	l := openLog(t, Config{Path: path})
	l.Write(Stdout, noon, numbered(first, count))
	return []byte(contents(t, path))
}

// inAProcessOfItsOwn runs a test again in another process, and reports whether
// this is that process. A limit of a process also holds for the files that package
// testing writes.
func inAProcessOfItsOwn(t *testing.T) bool {
	t.Helper()
	const mark = "FORMAT_TEST_ALONE"
	if os.Getenv(mark) != "" {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), mark+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// limitFileSize limits the files of this process to n bytes. Beyond that,
// write(2) writes the bytes that fit and then fails, as on a full disk.
func limitFileSize(t *testing.T, n uint64) {
	t.Helper()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: n, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old) })
}

func TestFullDiskDropsWholeLinesAndCountsThem(t *testing.T) {
	if !inAProcessOfItsOwn(t) {
		return
	}
	for _, driver := range []string{DriverJSON, DriverLocal} {
		t.Run(driver, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			l := openLog(t, Config{Driver: driver, Path: path, MaxSize: -1})
			count := func() int {
				if driver == DriverLocal {
					return len(entries(t, []byte(contents(t, path))))
				}
				return len(records(t, path))
			}
			const lines = 2000
			limitFileSize(t, 100_000)
			for i := 0; i < lines; i += 500 {
				l.Write(Stdout, noon, numbered(i, 500))
			}
			kept := count()
			if kept == 0 || kept == lines {
				t.Fatalf("%d lines were kept", kept)
			}
			if got := l.Dropped(); got != uint64(lines-kept) {
				t.Errorf("Dropped is %d with %d of %d lines kept", got, kept, lines)
			}
			limitFileSize(t, 1<<40)
			l.Write(Stdout, noon, numbered(lines, 1))
			if got := count(); got != kept+1 {
				t.Errorf("%d lines once there was room again, want %d", got, kept+1)
			}
			if got := l.Dropped(); got != uint64(lines-kept) {
				t.Errorf("Dropped went on to %d", got)
			}
		})
	}
}

func TestRotationThatFailsKeepsWritingTheOldFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	l := openLog(t, Config{Path: path, MaxSize: 4096, MaxFiles: 3})
	if err := os.Mkdir(path+".tmp", 0o700); err != nil { // makes creating the next file fail
		t.Fatal(err)
	}
	l.Write(Stdout, noon, numbered(0, 1000))
	if got := len(records(t, path)); got != 1000 {
		t.Fatalf("%d lines, want 1000", got)
	}
	if err := os.Remove(path + ".tmp"); err != nil {
		t.Fatal(err)
	}
	l.Write(Stdout, noon, numbered(1000, 1000))
	if _, err := os.Stat(path + ".1"); err != nil {
		t.Errorf("rotation was not tried again: %v", err)
	}
}

func TestTwoStreamsAtOnceKeepTheirOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l := openLog(t, Config{Path: path, MaxSize: 1 << 20, MaxFiles: 50})
	var wg sync.WaitGroup
	for _, src := range []Source{Stdout, Stderr} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			text := numbered(0, 20000)
			for len(text) > 0 {
				n := min(777, len(text))
				l.Write(src, noon, text[:n])
				text = text[n:]
			}
		}()
	}
	wg.Wait()
	next := map[string]int{}
	all(t, path, 50, func(line []byte) {
		stream := "stdout"
		if bytes.Contains(line, []byte(`"stream":"stderr"`)) {
			stream = "stderr"
		}
		if n := number(t, line); n != next[stream] {
			t.Fatalf("%s: got line %d, want %d", stream, n, next[stream])
		}
		next[stream]++
	})
	if next["stdout"] != 20000 || next["stderr"] != 20000 {
		t.Errorf("lines: %v", next)
	}
}

func TestNoneDriverTakesAndForgets(t *testing.T) {
	l, err := Open(Config{Driver: DriverNone})
	if err != nil {
		t.Fatal(err)
	}
	l.Write(Stdout, noon, []byte("x\n"))
	l.End(Stdout)
	l.Flush()
	if err := l.Close(); err != nil || l.Dropped() != 0 {
		t.Errorf("Close: %v, dropped %d", err, l.Dropped())
	}
}

func TestFlushGivesMemoryBackAndChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l := openLog(t, Config{Path: path})
	l.Write(Stdout, noon, append(numbered(0, 1000), "line 1000 "...))
	l.Flush()
	l.Write(Stdout, noon, []byte("end\n"))
	if got := len(records(t, path)); got != 1001 {
		t.Errorf("%d lines, want 1001", got)
	}
}

func FuzzJSONFileDecodesToWhatWasWritten(f *testing.F) {
	f.Add([]byte("hello\nworld"), 3)
	f.Add([]byte("\"\\\x00\x1f<>&\u2028\u2029\xff\xfe\xc3\n\r\t"), 1)
	f.Add(bytes.Repeat([]byte("世"), 9000), 5000)
	f.Add(bytes.Repeat([]byte("\x01"), 40000), 70000)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, in []byte, chunk int) {
		if chunk < 1 {
			chunk = 1
		}
		path := filepath.Join(dir, "log")
		os.Remove(path)
		l := openLog(t, Config{Path: path})
		for p := in; len(p) > 0; {
			n := min(chunk, len(p))
			l.Write(Stdout, noon, p[:n])
			p = p[n:]
		}
		l.End(Stdout)
		var got strings.Builder
		for _, r := range records(t, path) {
			got.WriteString(r.Log)
		}
		// Each byte that is not valid UTF-8 becomes one replacement character.
		var want strings.Builder
		for p := in; len(p) > 0; {
			r, size := utf8.DecodeRune(p)
			want.WriteRune(r)
			p = p[size:]
		}
		if got.String() != want.String() {
			t.Errorf("wrote %q, read %q", in, got.String())
		}
	})
}

func benchmark(b *testing.B, driver string, line string) {
	path := filepath.Join(b.TempDir(), "log")
	l := openLog(b, Config{Driver: driver, Path: path, MaxSize: 64 << 20, MaxFiles: 2})
	chunk := []byte(strings.Repeat(line, 64<<10/len(line)+1))[:64<<10]
	now := time.Now()
	b.SetBytes(int64(len(chunk)))
	b.ReportAllocs()
	for b.Loop() {
		l.Write(Stdout, now, chunk)
	}
	if l.Dropped() > 0 {
		b.Fatalf("%d lines dropped", l.Dropped())
	}
}

func BenchmarkWrite(b *testing.B) {
	ascii := strings.Repeat("abcdefghi ", 10)[:99] + "\n"
	quoted := strings.Repeat(`{"a": "b"} `, 10)[:99] + "\n"
	utf := strings.Repeat("grüße aus ", 20)[:99] + "\n"
	for _, c := range []struct{ name, driver, line string }{
		{"json-file/100-bytes", DriverJSON, ascii},
		{"json-file/quotes", DriverJSON, quoted},
		{"json-file/utf-8", DriverJSON, utf},
		{"json-file/20-bytes", DriverJSON, ascii[79:]},
		{"local/100-bytes", DriverLocal, ascii},
	} {
		b.Run(c.name, func(b *testing.B) { benchmark(b, c.driver, c.line) })
	}
}

func BenchmarkEncode(b *testing.B) {
	line := []byte(strings.Repeat("abcdefghi ", 10)[:99])
	buf := make([]byte, 4096)
	suffix := []byte(`","stream":"stdout","time":"2026-03-04T12:00:00.123456789Z"}` + "\n")
	b.SetBytes(100)
	for b.Loop() {
		encodeJSON(buf, 0, line, true, suffix)
	}
}
