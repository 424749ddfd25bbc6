// SPDX-License-Identifier: Apache-2.0

// Package daemonless tests the command line while no daemon lives. The answer
// of each command is compared with the daemon's answer. It needs root.
package daemonless

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"

	"holdfast/test/kit"
)

func TestMain(m *testing.M) { kit.Main(m) }

// note is the line on stderr that names the source of the answer.
var note = regexp.MustCompile(`(?m)^holdfast: no daemon answers on /\S+/holdfast\.sock: asking the containers' shims\n`)

const patience = 60 * time.Second

// start starts a daemon with an image of busybox in it.
func start(t *testing.T, o kit.Options) *kit.Daemon {
	t.Helper()
	t.Parallel()
	o.LiveRestore = true
	d := kit.Start(t, o)
	d.Load("busybox:latest", kit.Busybox(t, nil))
	return d
}

// alone runs holdfast while no daemon lives. The command must print the note
// once.
func alone(t *testing.T, d *kit.Daemon, args ...string) kit.Result {
	t.Helper()
	r := d.TryHoldfast(args...)
	if n := len(note.FindAllString(r.Stderr, -1)); n != 1 {
		t.Errorf("%v printed %d times that no daemon answers: %q", args, n, r.Stderr)
	}
	r.Stderr = note.ReplaceAllString(r.Stderr, "")
	return r
}

// ok is alone for a command that must succeed.
func ok(t *testing.T, d *kit.Daemon, args ...string) string {
	t.Helper()
	r := alone(t, d, args...)
	if r.Code != 0 {
		t.Fatalf("%v: exit code %d\n%s%s", args, r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimSuffix(r.Stdout, "\n")
}

// session is a command in a pseudo-terminal.
type session struct {
	t   *testing.T
	tty *os.File
	cmd *exec.Cmd

	mu   sync.Mutex
	got  bytes.Buffer
	more chan struct{} // closed and replaced when output arrives
}

// inTerminal starts holdfast in a pseudo-terminal of 30 rows and 100 columns.
func inTerminal(t *testing.T, d *kit.Daemon, args ...string) *session {
	t.Helper()
	cmd := d.HoldfastCommand(context.Background(), args...)
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 30, Cols: 100})
	if err != nil {
		t.Fatal(err)
	}
	s := &session{t: t, tty: tty, cmd: cmd, more: make(chan struct{})}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := tty.Read(buf)
			s.mu.Lock()
			s.got.Write(buf[:n])
			close(s.more)
			s.more = make(chan struct{})
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		tty.Close()
	})
	return s
}

func (s *session) say(text string) {
	s.t.Helper()
	if _, err := io.WriteString(s.tty, text); err != nil {
		s.t.Fatal(err)
	}
}

// expect waits until the terminal shows a text.
func (s *session) expect(text string) {
	s.t.Helper()
	deadline := time.After(patience)
	for {
		s.mu.Lock()
		got, more := s.got.String(), s.more
		s.mu.Unlock()
		if strings.Contains(got, text) {
			return
		}
		select {
		case <-more:
		case <-deadline:
			s.t.Fatalf("the terminal does not show %q, but %q", text, got)
		}
	}
}

func (s *session) resize(rows, columns uint16) {
	s.t.Helper()
	if err := pty.Setsize(s.tty, &pty.Winsize{Rows: rows, Cols: columns}); err != nil {
		s.t.Fatal(err)
	}
}

// end waits for the command's end and returns its exit code.
func (s *session) end() int {
	s.t.Helper()
	timer := time.AfterFunc(patience, func() { s.cmd.Process.Kill() })
	defer timer.Stop()
	s.cmd.Wait()
	return s.cmd.ProcessState.ExitCode()
}
