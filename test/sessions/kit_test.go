// SPDX-License-Identifier: Apache-2.0

// Package sessions tests that clients' open connections survive the death of
// the daemon: terminals, attach, exec, wait and followed logs. It needs root.
package sessions

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

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

// terminal is a client in a terminal.
type terminal struct{ *kit.Terminal }

func inTerminal(t *testing.T, cmd *exec.Cmd) terminal {
	t.Helper()
	return terminal{kit.InTerminal(t, cmd, 24, 80)}
}

var size = regexp.MustCompile(`\d+ \d+\r\n`)

// settled waits until the client has sent its last request. Requests for the
// terminal's size come after all others.
func (x terminal) settled(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(patience)
	// The client may not handle SIGWINCH yet, so each round sets another size.
	for rows := uint16(30); !strings.Contains(x.String(), " 90\r\n"); rows = 61 - rows {
		if time.Now().After(deadline) {
			t.Fatalf("the container does not get the terminal's size:\n%s", x)
		}
		x.Resize(rows, 90)
		n := len(size.FindAllString(x.String(), -1))
		x.Type("stty size\n")
		x.Await("a size", func(text string) bool { return len(size.FindAllString(text, -1)) > n })
	}
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
func follow(t *testing.T, cmd *exec.Cmd) *kit.Screen {
	t.Helper()
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	t.Cleanup(func() { w.Close() })
	return kit.NewScreen(t, r)
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
		kit.ExitCode(t, cmd, said)
	}
}
