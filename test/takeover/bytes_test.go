// SPDX-License-Identifier: Apache-2.0

package takeover

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/moby/moby/api/pkg/stdcopy"
	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
	"holdfast/test/cert"
	"holdfast/test/kit"
)

// everyByte returns each pair of bytes, followed by random bytes up to n.
func everyByte(n int) []byte {
	b := make([]byte, 0, max(n, 2<<16))
	for pair := range 1 << 16 {
		b = append(b, byte(pair>>8), byte(pair))
	}
	r := rand.NewChaCha8([32]byte{1})
	more := make([]byte, max(n-len(b), 0))
	r.Read(more)
	return append(b, more...)
}

// way is a connection between a client and a cat: the client's input, and the
// output that comes back.
type way struct {
	in  io.WriteCloser
	out io.Reader
	end func() error // waits for the command, after out has ended
}

// door is an address of the daemon.
type door struct {
	d      *kit.Daemon
	docker []string // options of the command line
	dial   func() (net.Conn, error)
}

func (o door) command(t *testing.T, args ...string) way {
	t.Helper()
	cmd := o.d.DockerCommand(context.Background(), append(append([]string{}, o.docker...), args...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return way{in, out, func() error {
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("%w: %s", err, said.Bytes())
		}
		return nil
	}}
}

// hijack sends a request that upgrades the connection.
func (o door) hijack(t *testing.T, path, body string) way {
	t.Helper()
	c, err := o.dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%s: %v %v", path, res, err)
	}
	out, demuxed := io.Pipe()
	go func() {
		_, err := stdcopy.StdCopy(demuxed, io.Discard, r)
		demuxed.CloseWithError(err)
	}()
	return way{halfCloser{c}, out, func() error { return nil }}
}

type halfCloser struct{ net.Conn }

func (c halfCloser) Close() error { return c.Conn.(interface{ CloseWrite() error }).CloseWrite() }

// ways are the ways in which a client can connect. The container or exec ends
// with its input, except that a websocket has no half-close: there the
// container ends by itself.
var ways = map[string]func(t *testing.T, o door, name string, size int) way{
	"run": func(t *testing.T, o door, name string, _ int) way {
		return o.command(t, "run", "--rm", "-i", "--name", name, image, "cat")
	},
	"start": func(t *testing.T, o door, name string, _ int) way {
		o.d.Docker("create", "--rm", "-i", "--name", name, image, "cat")
		return o.command(t, "start", "-ai", name)
	},
	"exec": func(t *testing.T, o door, _ string, _ int) way { return o.command(t, "exec", "-i", "box", "cat") },
	"attach": func(t *testing.T, o door, name string, _ int) way {
		o.d.Docker("create", "--rm", "-i", "--name", name, image, "cat")
		w := o.hijack(t, "/containers/"+name+"/attach?stream=1&stdin=1&stdout=1", "")
		o.d.Docker("start", name)
		return w
	},
	"exec of the API": func(t *testing.T, o door, _ string, _ int) way {
		id := o.d.CreateExec("box", `{"AttachStdin":true,"AttachStdout":true,"Cmd":["cat"]}`)
		return o.hijack(t, "/exec/"+id+"/start", "{}")
	},
	"websocket": func(t *testing.T, o door, name string, size int) way {
		o.d.Docker("create", "--rm", "-i", "--name", name, image, "head", "-c", strconv.Itoa(size))
		client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return o.dial() }}}
		ws, _, err := websocket.Dial(t.Context(), "ws://127.0.0.1/containers/"+name+"/attach/ws?stream=1&stdin=1&stdout=1", &websocket.DialOptions{HTTPClient: client})
		if err != nil {
			t.Fatal(err)
		}
		ws.SetReadLimit(-1)
		c := websocket.NetConn(context.Background(), ws, websocket.MessageBinary)
		t.Cleanup(func() { c.Close() })
		o.d.Docker("start", name)
		return way{noClose{c}, c, func() error { return nil }}
	},
}

type noClose struct{ io.Writer }

func (noClose) Close() error { return nil }

// passes writes data, calls halfway in the middle, and compares the output.
func (w way) passes(t *testing.T, data []byte, halfway func()) {
	t.Helper()
	got := make([]byte, 0, len(data)+1)
	begun := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := w.out.Read(buf)
			if len(got) == 0 && n > 0 {
				close(begun)
			}
			got = append(got, buf[:n]...)
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	write := func(p []byte) {
		if _, err := w.in.Write(p); err != nil {
			t.Errorf("write: %v", err)
		}
	}
	write(data[:len(data)/2])
	if halfway != nil {
		select {
		case <-begun: // so the cat keeps running under this shim
		case <-time.After(4 * patience):
			t.Error("nothing comes back")
		}
		halfway()
	}
	write(data[len(data)/2:])
	if err := w.in.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := <-ended; err != io.EOF {
		t.Errorf("after %d of %d bytes: %v", len(got), len(data), err)
	}
	if err := w.end(); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(got, data) {
		at := 0
		for at < len(got) && at < len(data) && got[at] == data[at] {
			at++
		}
		t.Errorf("%d of %d bytes came back, and the first difference is at byte %d", len(got), len(data), at)
	}
}

// doors starts a daemon that listens on a Unix socket and on TCP.
func doors(t *testing.T, overTLS bool) map[string]door {
	t.Helper()
	d := kit.New(t, kit.Options{LiveRestore: true, Config: map[string]any{"debug": true}})
	flags := []string{"-H", d.Host, "-H", "tcp://127.0.0.1:0", "--tls=false"}
	if overTLS {
		pem, key := cert.New(t, "test", nil).Write(t, d.Root, "server")
		flags = []string{"-H", d.Host, "-H", "tcp://127.0.0.1:0", "--tls", "--tlsverify=false", "--tlscert", pem, "--tlskey", key}
	}
	d.SetFlags(flags...)
	d.Start()
	d.Load(image, kit.Busybox(t, nil))
	d.Docker("run", "-d", "--name", "box", image, "sleep", "100000")
	_, rest, _ := strings.Cut(d.Log(), "API listen on tcp://")
	address := rest[:strings.IndexAny(rest, "\"\n")]
	tcp := "tcp://" + address
	// The port must stay the same when the daemon starts again.
	for i, f := range flags {
		if f == "tcp://127.0.0.1:0" {
			flags[i] = tcp
		}
	}
	d.SetFlags(flags...)
	if overTLS {
		return map[string]door{"TLS": {d, []string{"-H", tcp, "--tlsverify", "--tlscacert", filepath.Join(d.Root, "server.pem")}, func() (net.Conn, error) {
			return tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
		}}}
	}
	return map[string]door{
		"Unix": {d, nil, func() (net.Conn, error) { return net.Dial("unix", d.Socket) }},
		"TCP":  {d, []string{"-H", tcp}, func() (net.Conn, error) { return net.Dial("tcp", address) }},
	}
}

// Every pair of bytes, including the detach keys, and 50 MB of random data come
// back unchanged over every kind of connection.
func TestEveryByteComesBack(t *testing.T) {
	data := everyByte(50 << 20)
	for _, overTLS := range []bool{false, true} {
		all := doors(t, overTLS)
		for at, o := range all {
			for name, join := range ways {
				t.Run(name+" over "+at, func(t *testing.T) {
					join(t, o, "cat-"+strings.ReplaceAll(name, " ", "-")+at, len(data)).passes(t, data, nil)
				})
			}
		}
		for _, o := range all {
			atRest(t, o.d)
			o.d.Docker("rm", "-f", "box")
			break
		}
	}
}

// startAnswered is the line of the daemon's log for a request to start a container.
var startAnswered = regexp.MustCompile(`msg=request method=POST path=\S+/start status=204`)

// The bytes also come back while the daemon is killed and started again, and
// while another daemon takes over. A stream that the daemon itself copies ends
// when the daemon is killed.
func TestEveryByteComesBackWhateverDaemonLives(t *testing.T) {
	data := everyByte(1 << 20)
	for _, overTLS := range []bool{false, true} {
		all := doors(t, overTLS)
		var d *kit.Daemon
		for _, o := range all {
			d = o.d
		}
		for _, what := range []string{"kill", "takeover"} {
			// All connections run at the same time, so one kill affects them
			// all.
			var ready, done sync.WaitGroup
			happens := make(chan struct{})
			starts := 1 // that of "box"
			for at, o := range all {
				for name, join := range ways {
					if what == "kill" && (overTLS || name == "websocket") {
						continue
					}
					if name == "run" || name == "start" || name == "attach" {
						starts++
					}
					w := join(t, o, "cat-"+what+"-"+strings.ReplaceAll(name, " ", "-")+at, len(data))
					ready.Add(1)
					done.Go(func() {
						w.passes(t, data, func() { ready.Done(); <-happens })
						if t.Failed() {
							t.Logf("%s over %s, %s", name, at, what)
						}
					})
				}
			}
			ready.Wait()
			if what == "kill" {
				// The first bytes may come back while "docker run" and "docker start"
				// still wait for the answer to their request to start. A kill before
				// that answer fails the request.
				kit.Eventually(t, "all starts are answered", func() bool {
					return len(startAnswered.FindAllString(d.Log(), -1)) >= starts
				})
				d.Kill9()
				d.Start()
			} else {
				d.Takeover()
			}
			close(happens)
			done.Wait()
		}
		atRest(t, d)
		d.Docker("rm", "-f", "box")
	}
}

// atRest waits until the shim of the container "box" has used no CPU time for a
// second.
func atRest(t *testing.T, d *kit.Daemon) {
	t.Helper()
	id := d.Docker("inspect", "-f", "{{.Id}}", "box")
	var st proto.State
	b, err := os.ReadFile(filepath.Join(d.ExecRoot, "shim", id, proto.StateFile))
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	if err != nil {
		t.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(st.ShimPid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	ticks := func() int {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", st.ShimPid))
		if err != nil {
			t.Fatal(err)
		}
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		user, _ := strconv.Atoi(f[11])
		system, _ := strconv.Atoi(f[12])
		return user + system
	}
	used := 0
	for range 20 {
		before := ticks()
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 1000); n != 0 && err == nil {
			t.Fatal("the shim has ended")
		}
		if used = ticks() - before; used <= 1 {
			return
		}
	}
	t.Errorf("the idle shim uses %d ms in each second", used*10)
}
