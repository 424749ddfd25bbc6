package shim

import (
	"bufio"
	"bytes"
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
	b := newBox(t, "cat")
	b.boot.OpenStdin = true
	s, ev := b.started()
	c := b.attach(s, proto.Attach{Stdin: true, Stdout: true, Raw: true, DetachKeys: []byte{16, 17}})
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

// The container writes 100 MB of numbered lines as fast as it can; meanwhile
// the daemon's connection ends without a word.
func TestLogHasEveryLineOnceWhileNoDaemonLives(t *testing.T) {
	const lines = 1_200_000 // of about 87 bytes
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
		t.Fatal("the shim did not leave in time")
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

func TestSlowClientNeverBlocksTheContainerAndStillGetsAll(t *testing.T) {
	const size = 40 << 20
	b := newBox(t, "head -c "+strconv.Itoa(size)+" /dev/zero; echo; echo done")
	b.boot.Log.Driver = "none"
	s := b.spawn()
	c := b.attach(s, proto.Attach{Stdout: true, Stderr: true})
	ev := b.subscribe(s, 0)
	if _, err := s.Start(ctx(t)); err != nil {
		t.Fatal(err)
	}
	ev.action(proto.ActionDie) // although nobody has read a byte
	c.conn.SetDeadline(time.Now().Add(time.Minute))
	out, _ := c.all()
	if len(out) != size+len("\ndone\n") || !strings.HasSuffix(out, "\ndone\n") {
		t.Errorf("%d bytes came", len(out))
	}
	b.ended(s)
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
	half.conn.CloseWrite() // still wants the output
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
