// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
	"holdfast/test/kit"
)

// fifo makes a FIFO in the container's /tmp.
func (b *box) fifo(name string) string {
	b.t.Helper()
	path := filepath.Join(b.dir, "rootfs/tmp", name)
	if err := unix.Mkfifo(path, 0o666); err != nil {
		b.t.Fatal(err)
	}
	return path
}

// late stops the shim while the container writes. The container starts to write
// when the FIFO goes is opened, and reports the end with done.
func (b *box) late(pid int, goes, done string) {
	b.t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		b.t.Fatal(err)
	}
	defer unix.Kill(pid, unix.SIGCONT)
	kit.Eventually(b.t, "each thread of the shim is stopped", func() bool { return stopped(pid) })
	if err := os.WriteFile(goes, []byte("x"), 0); err != nil {
		b.t.Fatal(err)
	}
	if _, err := os.ReadFile(done); err != nil {
		b.t.Fatal(err)
	}
}

// stopped reports whether a process is stopped by a signal. A thread that runs on
// another processor stops some time after the signal was sent.
func stopped(pid int) bool {
	states, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, path := range states {
		text, err := os.ReadFile(path)
		if err != nil {
			return false
		}
		// Such as "1234 (name of the program) T 1 …".
		if _, state, _ := strings.Cut(string(text), ") "); !strings.HasPrefix(state, "T") {
			return false
		}
	}
	return len(states) > 0
}

// frames reads n bytes out of frames of any stream.
func (c *terminal) frames(n int) string {
	c.t.Helper()
	var got strings.Builder
	for got.Len() < n {
		var h [8]byte
		if _, err := io.ReadFull(c.conn, h[:]); err != nil {
			c.t.Fatalf("%q and %v", got.String(), err)
		}
		if _, err := io.CopyN(&got, c.conn, int64(binary.BigEndian.Uint32(h[4:]))); err != nil {
			c.t.Fatalf("%q and %v", got.String(), err)
		}
	}
	return got.String()
}

var orders = []struct{ name, script, want string }{
	{"output first", "echo 1; echo 2 >&2", "1\n2\n"},
	{"error first", "echo 1 >&2; echo 2", "1\n2\n"},
	{"reopened error", "echo 1 >/dev/stderr; echo 2", "1\n2\n"},
	{"output, error, and again", "echo 1; echo 2 >&2; echo 1; echo 2 >&2", "1\n1\n2\n2\n"},
}

// TestLinesComeInTheOrderInWhichTheyWereWritten: the order is the same in the
// log and for clients although the shim is slow, for a container that runs on,
// for one that ends, and for an exec.
func TestLinesComeInTheOrderInWhichTheyWereWritten(t *testing.T) {
	for _, o := range orders {
		for _, end := range []struct{ name, script string }{{"goes on", "; read x </tmp/end"}, {"ends", ""}} {
			t.Run(o.name+", "+end.name, func(t *testing.T) {
				b := newBox(t, "read x </tmp/go; "+o.script+"; echo x >/tmp/done"+end.script)
				goes, done := b.fifo("go"), b.fifo("done")
				ends := b.fifo("end")
				s := b.spawn()
				c := b.attach(s, proto.Attach{Stdout: true, Stderr: true, Raw: true})
				if _, err := s.Start(ctx(t)); err != nil {
					t.Fatal(err)
				}
				b.late(s.Hello().Pid, goes, done)
				if got := c.until(o.want); got != o.want {
					t.Errorf("the client got %q, want %q", got, o.want)
				}
				if end.script != "" {
					if err := os.WriteFile(ends, []byte("x\n"), 0); err != nil {
						t.Fatal(err)
					}
				}
				b.ended(s)
				data, err := os.ReadFile(b.boot.Log.Path)
				if err != nil {
					t.Fatal(err)
				}
				var logged strings.Builder
				for line := range strings.Lines(string(data)) {
					var l struct{ Log string }
					if err := json.Unmarshal([]byte(line), &l); err != nil {
						t.Fatal(err)
					}
					logged.WriteString(l.Log)
				}
				if logged.String() != o.want {
					t.Errorf("the log has %q, want %q", logged.String(), o.want)
				}
			})
			t.Run(o.name+", exec "+end.name, func(t *testing.T) {
				b := newBox(t, "sleep 1000")
				goes, done := b.fifo("go"), b.fifo("done")
				b.fifo("end")
				s, _ := b.started()
				err := s.ExecCreate(ctx(t), proto.ExecCreate{Exec: "x", Stdout: true, Stderr: true,
					Process: raw(t, process("sh", "-c", "read x </tmp/go; "+o.script+"; echo x >/tmp/done"+end.script))})
				if err != nil {
					t.Fatal(err)
				}
				c, theirs := clientPair(t)
				_, err = s.ExecStart(ctx(t), proto.ExecStart{Exec: "x"}, theirs)
				theirs.Close()
				if err != nil {
					t.Fatal(err)
				}
				b.late(s.Hello().Pid, goes, done)
				if got := c.frames(len(o.want)); got != o.want {
					t.Errorf("the client got %q, want %q", got, o.want)
				}
			})
		}
	}
}
