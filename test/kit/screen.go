// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
)

// Screen collects the output of a program, and lets a test wait for parts of it.
type Screen struct {
	t       testing.TB
	mu      sync.Mutex
	text    bytes.Buffer
	passed  int           // what Next has passed
	changed chan struct{} // closed and replaced when output arrives
	ended   bool
}

// NewScreen reads a program's output until its end.
func NewScreen(t testing.TB, r io.Reader) *Screen {
	s := &Screen{t: t, changed: make(chan struct{})}
	go func() {
		buf := make([]byte, 32<<10)
		for {
			n, err := r.Read(buf)
			s.mu.Lock()
			s.text.Write(buf[:n])
			s.ended = err != nil
			close(s.changed)
			s.changed = make(chan struct{})
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return s
}

// String returns all output so far.
func (s *Screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// Await waits until the output fulfils a condition, which gets all of it. It fails the
// test if the output ends before.
func (s *Screen) Await(what string, ok func(text string) bool) {
	s.t.Helper()
	s.until("no "+what+" in", func(text string, ended bool) bool {
		if ok(text) {
			return true
		}
		if ended {
			s.t.Fatalf("the output ended without %s:\n%s", what, last(text))
		}
		return false
	})
}

// until waits until a condition holds. bad begins the sentence that fails the test.
func (s *Screen) until(bad string, ok func(text string, ended bool) bool) {
	s.t.Helper()
	deadline := time.After(patience)
	for {
		s.mu.Lock()
		text, changed, ended := s.text.String(), s.changed, s.ended
		s.mu.Unlock()
		if ok(text, ended) {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			s.t.Fatalf("%s the output:\n%s", bad, last(text))
		}
	}
}

// Shows waits until the output contains a part.
func (s *Screen) Shows(part string) {
	s.t.Helper()
	s.Await(part, func(text string) bool { return strings.Contains(text, part) })
}

// Next waits until the output contains a part after what an earlier Next has found.
func (s *Screen) Next(part string) {
	s.t.Helper()
	s.Await(part, func(text string) bool {
		_, after, found := strings.Cut(text[s.passed:], part)
		if found {
			s.passed = len(text) - len(after)
		}
		return found
	})
}

// End waits for the end of the output and returns all of it.
func (s *Screen) End() (all string) {
	s.t.Helper()
	s.until("there is no end of", func(text string, ended bool) bool {
		all = text
		return ended
	})
	return all
}

func last(text string) string { return text[max(0, len(text)-2000):] }

// Terminal is a program in a pseudo-terminal.
type Terminal struct {
	*Screen
	Cmd *exec.Cmd
	tty *os.File // the master
}

// InTerminal starts a program in a pseudo-terminal. The program is killed at the end of
// the test.
func InTerminal(t testing.TB, cmd *exec.Cmd, rows, columns uint16) *Terminal {
	t.Helper()
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: rows, Cols: columns})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.Close()
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	return &Terminal{NewScreen(t, f), cmd, f}
}

// Type writes what a user types.
func (x *Terminal) Type(text string) {
	x.t.Helper()
	if _, err := io.WriteString(x.tty, text); err != nil {
		x.t.Fatal(err)
	}
}

// Resize changes the size of the terminal.
func (x *Terminal) Resize(rows, columns uint16) {
	x.t.Helper()
	if err := pty.Setsize(x.tty, &pty.Winsize{Rows: rows, Cols: columns}); err != nil {
		x.t.Fatal(err)
	}
}

// ExitCode waits for the program's end.
func (x *Terminal) ExitCode() int {
	x.t.Helper()
	return ExitCode(x.t, x.Cmd, x.Screen)
}

// ExitCode waits for the end of a program that was started, and returns its exit code.
func ExitCode(t testing.TB, cmd *exec.Cmd, s *Screen) int {
	t.Helper()
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		cmd.Process.Kill()
		<-done
		t.Fatalf("%s does not end:\n%s", strings.Join(cmd.Args, " "), last(s.String()))
	}
	return cmd.ProcessState.ExitCode()
}
