// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/internal/shim/proto"
)

func TestAttachBeforeStartSeesTheFirstByte(t *testing.T) {
	b := newBox(t, "echo out; echo err >&2; head -c 300000 /dev/zero; exit 5")
	s := b.spawn()
	both := b.attach(s, proto.Attach{Stdout: true, Stderr: true})
	onlyErr := b.attach(s, proto.Attach{Stderr: true})
	if _, err := s.Start(ctx(t)); err != nil {
		t.Fatal(err)
	}
	out, errs := both.all()
	if want := "out\n" + strings.Repeat("\x00", 300000); out != want || errs != "err\n" {
		t.Errorf("stdout %d bytes, want %d, stderr %q", len(out), len(want), errs)
	}
	if out, errs := onlyErr.all(); out != "" || errs != "err\n" {
		t.Errorf("stderr alone: %q %q", out, errs)
	}
	b.ended(s)
	if got := b.logLines("stderr"); got != "err\n" {
		t.Errorf("log: %q", got)
	}
}

func TestStdinOnceEndsWithItsClient(t *testing.T) {
	b := newBox(t, "cat; echo end")
	b.boot.OpenStdin, b.boot.StdinOnce = true, true
	s := b.spawn()
	c := b.attach(s, proto.Attach{Stdin: true, Stdout: true, Pending: []byte("a")})
	c.write("b\n")
	if err := c.conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Start(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if out, _ := c.all(); out != "ab\nend\n" {
		t.Errorf("stdout: %q", out)
	}
	b.ended(s)
}

func TestStdinStaysOpenForTheNextClient(t *testing.T) {
	b := newBox(t, "cat")
	b.boot.OpenStdin = true
	s, _ := b.started()
	for _, line := range []string{"one\n", "two\n"} {
		c := b.attach(s, proto.Attach{Stdin: true, Stdout: true, Raw: true})
		c.write(line)
		c.until(line)
		c.conn.Close()
	}
}

func TestDetachKeysLeaveTheContainerRunning(t *testing.T) {
	b := newBox(t, "stty raw -echo; echo ready; exec cat")
	b.spec["process"].(map[string]any)["terminal"] = true
	b.boot.Terminal, b.boot.OpenStdin = true, true
	s := b.spawn()
	ev := b.subscribe(s, 0)
	c := b.attach(s, proto.Attach{Stdin: true, Stdout: true, Raw: true, DetachKeys: []byte{16, 17}})
	if _, err := s.Start(ctx(t)); err != nil {
		t.Fatal(err)
	}
	c.until("ready\n")
	c.write("x\x10y\n")
	c.until("x\x10y\n")
	c.write("\x10\x11")
	if rest, err := io.ReadAll(c.conn); err != nil || len(rest) > 0 {
		t.Fatalf("after the detach keys: %q, %v", rest, err)
	}
	ev.action(proto.ActionDetach)
	if st, err := s.State(ctx(t)); err != nil || st.Status != proto.StatusRunning {
		t.Errorf("state: %+v, %v", st, err)
	}
}

// Without a terminal there are no detach keys, and every byte reaches the
// container.
func TestWithoutATerminalEveryByteArrives(t *testing.T) {
	b := newBox(t, "cat")
	b.boot.OpenStdin, b.boot.StdinOnce = true, true
	s := b.spawn()
	c := b.attach(s, proto.Attach{Stdin: true, Stdout: true, Raw: true, DetachKeys: []byte{16, 17}})
	if _, err := s.Start(ctx(t)); err != nil {
		t.Fatal(err)
	}
	var all []byte
	for i := range 1 << 16 { // all pairs of bytes
		all = append(all, byte(i>>8), byte(i))
	}
	go func() {
		c.conn.Write(all)
		c.conn.CloseWrite()
	}()
	if got, err := io.ReadAll(c.conn); err != nil || !bytes.Equal(got, all) {
		t.Errorf("%d bytes came back (%v), want %d, or their contents differ", len(got), err, len(all))
	}
}

func TestTerminalHasSizeAndIsResized(t *testing.T) {
	b := newBox(t, "stty size; read x; stty size")
	b.spec["process"].(map[string]any)["terminal"] = true
	b.boot.Terminal, b.boot.OpenStdin, b.boot.ConsoleSize = true, true, [2]uint{33, 111}
	s := b.spawn()
	c := b.attach(s, proto.Attach{Stdin: true, Stdout: true, Stderr: true, Raw: true})
	if _, err := s.Start(ctx(t)); err != nil {
		t.Fatal(err)
	}
	c.until("33 111\r\n")
	if err := s.Resize(ctx(t), 44, 122); err != nil {
		t.Fatal(err)
	}
	c.write("go\n")
	c.until("44 122\r\n")
	if _, err := io.ReadAll(c.conn); err != nil {
		t.Fatal(err)
	}
	b.ended(s)
	if got := b.logLines("stdout"); !strings.Contains(got, "44 122\r\n") {
		t.Errorf("log: %q", got)
	}
}

// The container writes 100 MB of numbered lines as fast as it can. Meanwhile
// the daemon's connection is closed without notice.
func TestLogHasEveryLineOnceWhileNoDaemonLives(t *testing.T) {
	const lines = 1_200_000 // of about 87 bytes each
	pad := strings.Repeat("x", 80)
	b := newBox(t, "dd if=/tmp/lines bs=64k")
	src, err := os.Create(filepath.Join(b.dir, "rootfs/tmp/lines"))
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriterSize(src, 1<<20)
	for i := 1; i <= lines; i++ {
		w.WriteString(strconv.Itoa(i) + " " + pad + "\n")
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	src.Close()
	s, ev := b.started()
	start := ev.action(proto.ActionStart)
	pid := s.Hello().Pid
	s.Close()
	if !exited(pid, b.pids[pid]) {
		t.Fatal("the shim did not exit in time")
	}
	st := b.mustState()
	if st.ExitCode != 0 || st.LogDropped != 0 {
		t.Errorf("state: %+v", st)
	}
	f, err := os.Open(b.boot.Log.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	n, size := 0, 0
	for sc.Scan() {
		line := sc.Bytes()
		if bytes.Contains(line, []byte(`"stream":"stderr"`)) {
			continue // dd's report
		}
		n++
		want := `{"log":"` + strconv.Itoa(n) + " " + pad + `\n","stream":"stdout",`
		if !bytes.HasPrefix(line, []byte(want)) {
			t.Fatalf("line %d: %q", n, line)
		}
		if n%10_000 == 0 && !json.Valid(line) {
			t.Fatalf("line %d is no JSON: %q", n, line)
		}
		size += len(pad) + 2 + len(strconv.Itoa(n))
	}
	if sc.Err() != nil || n != lines {
		t.Fatalf("%d lines, %v", n, sc.Err())
	}
	t.Logf("%d MB in %v", size>>20, st.Finished.Sub(start.State.Started).Round(time.Millisecond))
}

// As in Docker: output that an attached reader has not yet read is stored
// nowhere else, so the container waits.
func TestContainerWaitsForItsAttachedReader(t *testing.T) {
	const size = 40 << 20
	b := newBox(t, "head -c "+strconv.Itoa(size)+" /dev/zero; echo; echo done; echo written >&2")
	b.boot.Log.Driver = "none"
	s := b.spawn()
	c := b.attach(s, proto.Attach{Stdout: true})
	// A reader of the other stream, or one that has disconnected, does not
	// block the container.
	other := b.attach(s, proto.Attach{Stderr: true, Raw: true})
	left := b.attach(s, proto.Attach{Stdout: true})
	ev := b.subscribe(s, 0)
	if _, err := s.Start(ctx(t)); err != nil {
		t.Fatal(err)
	}
	left.conn.Close()
	short, cancel := context.WithTimeout(ctx(t), time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		other.conn.SetReadDeadline(time.Now().Add(time.Minute))
		_, err := io.ReadFull(other.conn, make([]byte, len("written\n")))
		ended <- err
	}()
	select {
	case <-ended:
		t.Fatal("the container has written everything although no byte was read")
	case <-short.Done():
	}
	c.conn.SetDeadline(time.Now().Add(time.Minute))
	out, _ := c.all()
	if len(out) != size+len("\ndone\n") || !strings.HasSuffix(out, "\ndone\n") {
		t.Errorf("%d bytes came", len(out))
	}
	if err := <-ended; err != nil {
		t.Errorf("stderr: %v", err)
	}
	ev.action(proto.ActionDie)
	b.ended(s)
}

// A reader that is behind all the time receives more data than any buffer
// holds.
func TestReaderThatIsAlwaysBehindGetsAll(t *testing.T) {
	const size = 1100 << 20
	b := newBox(t, "head -c "+strconv.Itoa(size)+" /dev/zero; echo; echo done")
	b.boot.Log.Driver = "none"
	s := b.spawn()
	c := b.attach(s, proto.Attach{Stdout: true, Raw: true})
	if _, err := s.Start(ctx(t)); err != nil {
		t.Fatal(err)
	}
	c.conn.SetDeadline(time.Now().Add(5 * time.Minute))
	zeros, err := io.CopyN(io.Discard, c.conn, size)
	if err != nil {
		t.Fatalf("after %d bytes: %v", zeros, err)
	}
	if rest, err := io.ReadAll(c.conn); err != nil || string(rest) != "\ndone\n" {
		t.Errorf("it ends with %q, %v", rest, err)
	}
	b.ended(s)
	// No file was used as a buffer.
	files, err := os.ReadDir(b.boot.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if st, err := f.Info(); err != nil || st.Size() > 1<<20 {
			t.Errorf("left: %s", f)
		}
	}
}

func TestClientThatGoesAwayIsForgotten(t *testing.T) {
	b := newBox(t, "echo ready; read x; head -c 5000000 /dev/zero; echo; echo end")
	b.boot.OpenStdin = true
	s := b.spawn()
	gone := b.attach(s, proto.Attach{Stdout: true, Raw: true})
	half := b.attach(s, proto.Attach{Stdin: true, Stdout: true, Raw: true})
	if _, err := s.Start(ctx(t)); err != nil {
		t.Fatal(err)
	}
	gone.until("ready")
	gone.conn.Close()
	half.write("go\n")
	half.conn.CloseWrite() // the client still reads the output
	half.until("\nend\n")
	b.ended(s)
}

func (b *box) mustState() proto.State {
	b.t.Helper()
	st, err := readState(b)
	if err != nil {
		b.t.Fatal(err)
	}
	return st
}
