// SPDX-License-Identifier: Apache-2.0

package sessions

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"holdfast/test/kit"

	"github.com/moby/moby/api/pkg/stdcopy"
)

// counter is a program that writes n numbered lines as fast as it can, after a
// line on its standard input.
func counter(n int) []string {
	return []string{"sh", "-c", "read go; seq 1 " + strconv.Itoa(n) + "; exit 3"}
}

// numbered checks that lines 1 to n are there once and in order.
func numbered(t *testing.T, text string, n int) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, line := range lines {
		if line != strconv.Itoa(i+1) {
			t.Fatalf("line %d is %q, of %d lines", i+1, line, len(lines))
		}
	}
	if len(lines) != n {
		t.Errorf("%d lines, want %d", len(lines), n)
	}
}

func TestFollowedLogGoesOnWhileNoDaemonLives(t *testing.T) {
	for name, client := range clients {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := live(t, nil)
			d.Docker("run", "-d", "--name", "box", image, "sh", "-c", `echo first; while ! [ -e /go ]; do usleep 10000; done; echo second >&2; exit 3`)
			cmd := client(d, "logs", "-f", "box")
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			cmd.Stdout, cmd.Stderr = w, w
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			w.Close()
			s := kit.NewScreen(t, r)
			s.Shows("first\n")
			touch := toTouch(t, d, "box", "/go")
			d.Kill9()
			touch()
			if got, want := s.End(), "first\nsecond\n"; got != want {
				t.Errorf("followed %q, want %q", got, want)
			}
			if code := kit.ExitCode(t, cmd, s); code != 0 {
				t.Errorf("the client ended with %d", code)
			}
		})
	}
}

// followedLog is the log that a client received, and the error at its end.
type followedLog struct {
	text string
	err  error
}

func TestNotALineIsLostOrDoubledWhereTheShimTakesOver(t *testing.T) {
	const lines = 300_000
	for _, c := range []struct {
		name   string
		driver string
		opts   []string
	}{
		{"one file", "json-file", nil},
		{"rotation", "json-file", []string{"max-size=300k", "max-file=100"}},
		{"compression", "json-file", []string{"max-size=300k", "max-file=100", "compress=true"}},
		{"local", "local", []string{"max-size=300k", "max-file=100"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := live(t, nil)
			args := []string{"run", "-d", "-i", "--name", "box", "--log-driver", c.driver}
			for _, o := range c.opts {
				args = append(args, "--log-opt", o)
			}
			d.Docker(append(append(args, image), counter(lines)...)...)
			attach, conn := request(t, d, "POST", "/containers/box/attach?stdin=1&stdout=1&stream=1")
			r, log := request(t, d, "GET", "/containers/box/logs?follow=1&stdout=1")
			done := make(chan string, 1)
			go func() { done <- unframed(t, r.Body) }()
			// More clients connect while the container writes, in every phase
			// of the handover.
			if _, err := conn.Write([]byte("go\n")); err != nil {
				t.Fatal(err)
			}
			var late []chan followedLog
			for range 5 {
				r, _ := request(t, d, "GET", "/containers/box/logs?follow=1&stdout=1")
				ch := make(chan followedLog, 1)
				go func() {
					var got bytes.Buffer
					_, err := stdcopy.StdCopy(&got, io.Discard, r.Body)
					ch <- followedLog{got.String(), err}
				}()
				late = append(late, ch)
			}
			d.Kill9()
			numbered(t, <-done, lines)
			// A stream that the daemon still served has ended with it, and with
			// an error, so that it does not look complete.
			for _, ch := range late {
				got := <-ch
				switch {
				case got.err == nil:
					numbered(t, got.text, lines)
				case !errors.Is(got.err, io.ErrUnexpectedEOF):
					t.Error(got.err)
				case strings.HasSuffix(got.text, "\n"):
					numbered(t, got.text, strings.Count(got.text, "\n"))
				case got.text != "":
					t.Errorf("a line was cut: %q", got.text[max(0, len(got.text)-2000):])
				}
			}
			attach.Body.Close()
			log.Close()
		})
	}
}
