// SPDX-License-Identifier: Apache-2.0

// Package sessions tests that clients' open connections survive the death of
// the daemon: terminals, attach, exec, wait and followed logs. It needs root.
package sessions

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
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

const (
	image    = "busybox:test"
	patience = 30 * time.Second
)

func live(t *testing.T, config map[string]any) *kit.Daemon {
	t.Helper()
	d := kit.Start(t, kit.Options{LiveRestore: true, Config: config})
	d.Load(image, kit.Busybox(t, nil))
	return d
}

// clients are the two command lines, which must behave the same.
var clients = map[string]func(*kit.Daemon, ...string) *exec.Cmd{
	"docker":   func(d *kit.Daemon, args ...string) *exec.Cmd { return d.DockerCommand(context.Background(), args...) },
	"holdfast": func(d *kit.Daemon, args ...string) *exec.Cmd { return d.HoldfastCommand(context.Background(), args...) },
}

// screen collects a client's output, and lets a test wait for a part of it.
type screen struct {
	t       *testing.T
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{} // closed and replaced when output arrives
	ended   bool
}

func newScreen(t *testing.T, r io.Reader) *screen {
	s := &screen{t: t, changed: make(chan struct{})}
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

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// await waits until the output fulfils a condition.
func (s *screen) await(what string, ok func(text string) bool) {
	s.t.Helper()
	deadline := time.After(patience)
	for {
		s.mu.Lock()
		text, changed, ended := s.text.String(), s.changed, s.ended
		s.mu.Unlock()
		if ok(text) {
			return
		}
		if ended {
			s.t.Fatalf("the output ended without %s:\n%s", what, last(text))
		}
		select {
		case <-changed:
		case <-deadline:
			s.t.Fatalf("no %s in the output:\n%s", what, last(text))
		}
	}
}

func (s *screen) shows(part string) {
	s.t.Helper()
	s.await(part, func(text string) bool { return strings.Contains(text, part) })
}

// end waits for the end of the output and returns all of it.
func (s *screen) end() string {
	s.t.Helper()
	deadline := time.After(patience)
	for {
		s.mu.Lock()
		text, changed, ended := s.text.String(), s.changed, s.ended
		s.mu.Unlock()
		if ended {
			return text
		}
		select {
		case <-changed:
		case <-deadline:
			s.t.Fatalf("the output does not end:\n%s", last(text))
		}
	}
}

func last(text string) string { return text[max(0, len(text)-2000):] }

// terminal is a client in a terminal.
type terminal struct {
	*screen
	cmd *exec.Cmd
	pty *os.File
}

func inTerminal(t *testing.T, cmd *exec.Cmd) *terminal {
	t.Helper()
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 80})
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
	return &terminal{newScreen(t, f), cmd, f}
}

func (x *terminal) types(s string) {
	x.t.Helper()
	if _, err := io.WriteString(x.pty, s); err != nil {
		x.t.Fatal(err)
	}
}

func (x *terminal) resizes(rows, cols uint16) {
	x.t.Helper()
	if err := pty.Setsize(x.pty, &pty.Winsize{Rows: rows, Cols: cols}); err != nil {
		x.t.Fatal(err)
	}
}

var size = regexp.MustCompile(`\d+ \d+\r\n`)

// settled waits until the client has sent its last request. Requests for the
// terminal's size come after all others.
func (x *terminal) settled() {
	x.t.Helper()
	deadline := time.Now().Add(patience)
	// The client may not handle SIGWINCH yet, so each round sets another size.
	for rows := uint16(30); !strings.Contains(x.String(), " 90\r\n"); rows = 61 - rows {
		if time.Now().After(deadline) {
			x.t.Fatalf("the container does not get the terminal's size:\n%s", last(x.String()))
		}
		x.resizes(rows, 90)
		n := len(size.FindAllString(x.String(), -1))
		x.types("stty size\n")
		x.await("a size", func(text string) bool { return len(size.FindAllString(text, -1)) > n })
	}
}

// exits waits for the client's end and returns its exit code.
func (x *terminal) exits() int {
	x.t.Helper()
	return exits(x.t, x.cmd, x.String)
}

func exits(t *testing.T, cmd *exec.Cmd, said func() string) int {
	t.Helper()
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		cmd.Process.Kill()
		<-done
		t.Fatalf("%s does not end:\n%s", strings.Join(cmd.Args, " "), last(said()))
	}
	return cmd.ProcessState.ExitCode()
}

// request sends a request and returns the answer, whose body is not read yet.
func request(t *testing.T, d *kit.Daemon, method, path string) (*http.Response, net.Conn) {
	t.Helper()
	c, err := net.Dial("unix", d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, method+" "+path+" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.StatusCode >= 300 {
		b, _ := io.ReadAll(r.Body)
		t.Fatalf("%s %s: %s: %s", method, path, r.Status, b)
	}
	return r, c
}

// removed waits until a container is removed.
func removed(t *testing.T, d *kit.Daemon, name string) {
	t.Helper()
	r, err := d.HTTP().Post("http://holdfast/containers/"+name+"/wait?condition=removed", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		t.Fatal(err)
	}
}

// body reads an answer to its end.
func body(t *testing.T, r *http.Response, c net.Conn) string {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatalf("the end of the answer can't be read: %v: %q", err, b)
	}
	return string(b)
}

// waiting is a client that waits for a container's end.
type waiting struct {
	t *testing.T
	r *http.Response
	c net.Conn
}

func waits(t *testing.T, d *kit.Daemon, condition string) *waiting {
	t.Helper()
	r, c := request(t, d, "POST", "/containers/box/wait?condition="+condition)
	return &waiting{t, r, c}
}

func (w *waiting) answer() string {
	w.t.Helper()
	return body(w.t, w.r, w.c)
}

// follow collects a command's output, stdout and stderr together.
func follow(t *testing.T, cmd *exec.Cmd) *screen {
	t.Helper()
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	t.Cleanup(func() { w.Close() })
	return newScreen(t, r)
}

// awaitExec waits until a container has a running exec session whose client's
// socket the shim holds.
func awaitExec(t *testing.T, d *kit.Daemon, name string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for d.Docker("top", name) == "" || !strings.Contains(d.Docker("top", name), "read x") {
		if time.Now().After(deadline) {
			t.Fatal("the exec does not run")
		}
	}
}

// unframed reads a multiplexed stream to its end. The last frame must be
// complete.
func unframed(t *testing.T, r io.Reader) string {
	var out strings.Builder
	b := bufio.NewReaderSize(r, 1<<20)
	head := make([]byte, 8)
	for {
		if _, err := io.ReadFull(b, head); err == io.EOF {
			return out.String()
		} else if err != nil {
			t.Errorf("the stream ends within a frame's head: %v", err)
			return out.String()
		}
		if _, err := io.CopyN(&out, b, int64(binary.BigEndian.Uint32(head[4:]))); err != nil {
			t.Errorf("the stream ends within a frame: %v", err)
			return out.String()
		}
	}
}

// query adds options to a request's path, replacing the existing options.
func query(path, options string) string {
	for o := range strings.SplitSeq(strings.TrimPrefix(options, "&"), "&") {
		key, _, _ := strings.Cut(o, "=")
		if key == "" {
			continue
		}
		path = strings.ReplaceAll(path, "&"+key+"=1", "")
		path = strings.ReplaceAll(path, "?"+key+"=1", "?") + "&" + o
	}
	return path
}

// overTCP starts a daemon that also listens on plain TCP, and returns a
// function that makes commands which use that address.
func overTCP(t *testing.T) (*kit.Daemon, func(args ...string) *exec.Cmd) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := "tcp://" + l.Addr().String()
	l.Close()
	d := kit.New(t, kit.Options{LiveRestore: true})
	d.SetFlags("-H", d.Host, "-H", host, "--tls=false")
	d.Start()
	return d, func(args ...string) *exec.Cmd {
		return d.DockerCommand(t.Context(), append([]string{"-H", host}, args...)...)
	}
}

// toTouch prepares the creation of a file in a container. The returned function
// creates it, whether a daemon lives then or not.
func toTouch(t *testing.T, d *kit.Daemon, container, file string) (touch func()) {
	t.Helper()
	cmd := d.DockerCommand(context.Background(), "exec", "-i", container, "sh", "-c", "read x; touch "+file)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	said := follow(t, cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	awaitExec(t, d, container)
	return func() {
		t.Helper()
		if _, err := io.WriteString(in, "go\n"); err != nil {
			t.Fatal(err)
		}
		in.Close()
		exits(t, cmd, said.String)
	}
}
