// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"holdfast/internal/engine"
	"holdfast/internal/event"
)

// echo plays a shim: it takes the client's socket, sends a frame or raw bytes,
// and then sends back all that it reads until the client has closed its side.
func echo(raw bool, hijack func(bool) (*engine.Client, error)) error {
	c, err := hijack(raw)
	if err != nil {
		return err
	}
	go func() {
		defer c.File.Close()
		send := func(p []byte) {
			if raw {
				c.File.Write(p)
				return
			}
			head := [8]byte{byte(stdcopy.Stderr)}
			binary.BigEndian.PutUint32(head[4:], uint32(len(p)))
			c.File.Write(append(head[:], p...))
		}
		send([]byte("hello\n"))
		if len(c.Pending) > 0 {
			send(c.Pending)
		}
		buf := make([]byte, 1024)
		for {
			n, err := c.File.Read(buf)
			if n > 0 {
				send(buf[:n])
			}
			if err != nil {
				return
			}
		}
	}()
	return nil
}

func TestAttachGivesTheClientsOwnSocketAway(t *testing.T) {
	peer := make(chan string, 1)
	f := &fake{attach: func(_ context.Context, o engine.AttachOptions) error {
		return echo(false, func(raw bool) (*engine.Client, error) {
			c, err := o.Hijack(raw)
			if err == nil {
				sa, serr := unix.Getsockname(int(c.File.Fd()))
				if serr != nil {
					return nil, serr
				}
				peer <- sa.(*unix.SockaddrUnix).Name
			}
			return c, err
		})
	}}
	path := serve(t, f)
	r, err := dial(t, path, "").ContainerAttach(t.Context(), "web", client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, DetachKeys: "ctrl-x"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got := <-peer; got != path {
		t.Errorf("the engine got a socket bound to %q, want the API's own, %q", got, path)
	}
	if kind, _ := r.MediaType(); kind != "application/vnd.docker.multiplexed-stream" {
		t.Errorf("media type %q", kind)
	}
	if want := "ContainerAttach(web, true, true, false, true, false, ctrl-x)"; f.last() != want {
		t.Errorf("called %s, want %s", f.last(), want)
	}
	io.WriteString(r.Conn, "typed\n")
	if err := r.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &errOut, r.Reader); err != nil {
		t.Fatal(err)
	}
	if out.Len() > 0 || errOut.String() != "hello\ntyped\n" {
		t.Errorf("stdout %q, stderr %q", out.String(), errOut.String())
	}
}

func TestExecStreamsOverATerminal(t *testing.T) {
	var size *[2]uint
	f := &fake{execStart: func(_ context.Context, o engine.ExecStartOptions) error {
		size = o.ConsoleSize
		return echo(true, o.Hijack)
	}}
	r, err := dial(t, serve(t, f), "").ExecAttach(t.Context(), "e1", client.ExecAttachOptions{TTY: true, ConsoleSize: client.ConsoleSize{Height: 5, Width: 6}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if kind, _ := r.MediaType(); kind != "application/vnd.docker.raw-stream" {
		t.Errorf("media type %q", kind)
	}
	io.WriteString(r.Conn, "x")
	r.CloseWrite()
	if got, _ := io.ReadAll(r.Reader); string(got) != "hello\nx" {
		t.Errorf("read %q", got)
	}
	if size == nil || *size != [2]uint{5, 6} {
		t.Errorf("console size %v", size)
	}
}

// TestHijackHead: the head depends on whether the client requested an upgrade,
// on the version, and on whether the stream is a terminal's. Data that the
// client sends in the same packet as the request must not be lost.
func TestHijackHead(t *testing.T) {
	for _, c := range []struct {
		version string
		upgrade bool
		raw     bool
		status  string
		kind    string
	}{
		{"1.41", true, false, "101 UPGRADED", "application/vnd.docker.raw-stream"},
		{"1.42", true, false, "101 UPGRADED", "application/vnd.docker.multiplexed-stream"},
		{"1.42", true, true, "101 UPGRADED", "application/vnd.docker.raw-stream"},
		{"1.44", false, false, "200 OK", "application/vnd.docker.raw-stream"},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			f := &fake{attach: func(_ context.Context, o engine.AttachOptions) error { return echo(c.raw, o.Hijack) }}
			conn, err := net.Dial("unix", serve(t, f))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			req := "POST /v" + c.version + "/containers/web/attach?stream=1 HTTP/1.1\r\nHost: x\r\n"
			if c.upgrade {
				req += "Connection: Upgrade\r\nUpgrade: tcp\r\n"
			}
			io.WriteString(conn, req+"\r\nearly")
			conn.(*net.UnixConn).CloseWrite()
			br := bufio.NewReader(conn)
			res, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatal(err)
			}
			if res.Status != c.status || res.Header.Get("Content-Type") != c.kind {
				t.Errorf("%s %s, want %s %s", res.Status, res.Header.Get("Content-Type"), c.status, c.kind)
			}
			if got := res.Header.Get("Upgrade"); (got == "tcp") != c.upgrade {
				t.Errorf("Upgrade: %q", got)
			}
			if res.Header.Get("Api-Version") != DefaultVersion {
				t.Error("no Api-Version")
			}
			var rest io.Reader = br
			if c.status == "200 OK" {
				rest = res.Body
			}
			got, _ := io.ReadAll(rest)
			if !c.raw {
				var out bytes.Buffer
				stdcopy.StdCopy(&out, &out, bytes.NewReader(got))
				got = out.Bytes()
			}
			if string(got) != "hello\nearly" {
				t.Errorf("read %q", got)
			}
		})
	}
}

func TestAttachOverTLSIsCopiedByTheDaemon(t *testing.T) {
	for _, raw := range []bool{true, false} {
		f := &fake{attach: func(_ context.Context, o engine.AttachOptions) error { return echo(raw, o.Hijack) }}
		srv := httptest.NewTLSServer(handler(f))
		t.Cleanup(srv.Close)
		conn, err := tls.Dial("tcp", srv.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "POST /containers/web/attach?stream=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
		br := bufio.NewReader(conn)
		if _, err := http.ReadResponse(br, nil); err != nil {
			t.Fatal(err)
		}
		big := strings.Repeat("0123456789abcdef", 32<<10) // more than any socket buffer
		go func() {
			io.WriteString(conn, big)
			conn.CloseWrite()
		}()
		var src io.Reader = br
		var out bytes.Buffer
		if raw {
			io.Copy(&out, src)
		} else if _, err := stdcopy.StdCopy(&out, &out, src); err != nil {
			t.Fatal(err)
		}
		if out.String() != "hello\n"+big {
			t.Errorf("raw %v: read %d bytes, want %d", raw, out.Len(), len(big)+6)
		}
		conn.Close()
	}
}

func TestAttachRefusedIsAnOrdinaryAnswer(t *testing.T) {
	f := &fake{err: fmt.Errorf("container web is not running: %w", errdefs.ErrConflict)}
	res, err := http.Post(tcpServer(t, f)+"/containers/web/attach?stream=1", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); res.StatusCode != 409 || !strings.Contains(string(b), "is not running") {
		t.Errorf("%d %q", res.StatusCode, b)
	}
}

func tcpServer(t *testing.T, f *fake) string {
	srv := httptest.NewServer(handler(f))
	t.Cleanup(srv.Close)
	return srv.URL
}

func TestWebsocketAttachCarriesBothStreamsUnframed(t *testing.T) {
	for _, c := range []struct {
		version string
		raw     bool
		kind    websocket.MessageType
	}{
		{"1.44", false, websocket.MessageBinary},
		{"1.44", true, websocket.MessageBinary},
		{"1.27", true, websocket.MessageText},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			shimEnded := make(chan struct{})
			f := &fake{attach: func(_ context.Context, o engine.AttachOptions) error {
				return echo(c.raw, func(raw bool) (*engine.Client, error) {
					cl, err := o.Hijack(raw)
					if err != nil {
						return nil, err
					}
					// Keep a duplicate to see when the bridge closes its end.
					fd, err := unix.Dup(int(cl.File.Fd()))
					if err != nil {
						return nil, err
					}
					go func() {
						defer unix.Close(fd)
						p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
						n, err := unix.Poll(p, 15_000)
						for err == unix.EINTR {
							n, err = unix.Poll(p, 15_000)
						}
						if n > 0 {
							close(shimEnded)
						}
					}()
					return cl, nil
				})
			}}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			url := strings.Replace(tcpServer(t, f), "http", "ws", 1)
			ws, _, err := websocket.Dial(ctx, url+"/v"+c.version+"/containers/web/attach/ws?stream=1&stdin=1&stdout=1", nil)
			if err != nil {
				t.Fatal(err)
			}
			if want := map[string]string{"1.44": "ContainerAttach(web, true, true, false, true, false, )", "1.27": "ContainerAttach(web, true, true, true, true, false, )"}[c.version]; f.last() != want {
				t.Errorf("called %s, want %s", f.last(), want)
			}
			read := func(want string) {
				t.Helper()
				for got := ""; got != want; {
					kind, b, err := ws.Read(ctx)
					if err != nil {
						t.Fatalf("after %q: %v", got, err)
					}
					if kind != c.kind {
						t.Errorf("message of kind %v, want %v", kind, c.kind)
					}
					if got += string(b); !strings.HasPrefix(want, got) {
						t.Fatalf("read %q, want %q", got, want)
					}
				}
			}
			read("hello\n")
			if err := ws.Write(ctx, c.kind, []byte("typed")); err != nil {
				t.Fatal(err)
			}
			read("typed")
			if err := ws.Close(websocket.StatusNormalClosure, ""); err != nil {
				t.Errorf("close: %v", err)
			}
			select {
			case <-shimEnded:
			case <-ctx.Done():
				t.Error("the shim's side stays open after the client has left")
			}
		})
	}
}

func TestWebsocketEndsWhenTheContainerDoes(t *testing.T) {
	f := &fake{attach: func(_ context.Context, o engine.AttachOptions) error {
		c, err := o.Hijack(true)
		if err != nil {
			return err
		}
		c.File.WriteString("bye")
		return c.File.Close()
	}}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, strings.Replace(tcpServer(t, f), "http", "ws", 1)+"/containers/web/attach/ws?stream=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, b, err := ws.Read(ctx); err != nil || string(b) != "bye" {
		t.Fatalf("read %q, %v", b, err)
	}
	if _, _, err := ws.Read(ctx); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		t.Errorf("ended with %v, want a normal closure", err)
	}
}

func TestWebsocketOfAnotherSitesPageIsRefused(t *testing.T) {
	f := &fake{attach: func(_ context.Context, o engine.AttachOptions) error {
		_, err := o.Hijack(true)
		return err
	}}
	_, res, err := websocket.Dial(t.Context(), strings.Replace(tcpServer(t, f), "http", "ws", 1)+"/containers/web/attach/ws",
		&websocket.DialOptions{HTTPHeader: http.Header{"Origin": {"https://elsewhere.example"}}})
	if err == nil || res == nil || res.StatusCode != http.StatusForbidden {
		t.Errorf("got %v, %v, want 403", res, err)
	}
}

// tape is a log of fixed lines. With follow it waits at its end until the
// context ends.
type tape struct {
	ctx    context.Context
	lines  chan engine.LogLine
	end    error
	closed chan struct{}
}

func newTape(ctx context.Context, end error, lines ...engine.LogLine) *tape {
	c := &tape{ctx: ctx, lines: make(chan engine.LogLine, len(lines)+10), end: end, closed: make(chan struct{})}
	for _, l := range lines {
		c.lines <- l
	}
	if end != nil {
		close(c.lines)
	}
	return c
}

func (c *tape) Next() (engine.LogLine, error) {
	select {
	case l, ok := <-c.lines:
		if !ok {
			return l, c.end
		}
		return l, nil
	case <-c.ctx.Done():
		return engine.LogLine{}, c.ctx.Err()
	}
}

func (c *tape) Buffered() (engine.LogLine, bool) {
	select {
	case l, ok := <-c.lines:
		return l, ok
	default:
		return engine.LogLine{}, false
	}
}

func (c *tape) Close() error { close(c.closed); return nil }

func line(source, text string) engine.LogLine {
	return engine.LogLine{
		Time: time.Date(2026, 1, 2, 3, 4, 5, 60, time.FixedZone("", 3600)), Source: source, Line: []byte(text),
		Attrs: map[string]string{"b": "2,3", "a": "1"},
	}
}

func TestLogsInEveryForm(t *testing.T) {
	lines := []engine.LogLine{line("stdout", "one\n"), line("stderr", "two\n"), line("stdout", "long "), line("stdout", "line\n")}
	const stamp = "2026-01-02T02:04:05.000000060Z "
	for _, c := range []struct {
		name, version, query string
		tty                  bool
		kind                 string
		out, err             string
	}{
		{"plain", "1.44", "", false, "application/vnd.docker.multiplexed-stream", "one\nlong line\n", "two\n"},
		{"old", "1.41", "", false, "application/vnd.docker.raw-stream", "one\nlong line\n", "two\n"},
		{"timestamps", "1.44", "&timestamps=1", false, "application/vnd.docker.multiplexed-stream", stamp + "one\n" + stamp + "long line\n", stamp + "two\n"},
		{"details", "1.44", "&details=1", false, "application/vnd.docker.multiplexed-stream", "a=1,b=2%2C3 one\na=1,b=2%2C3 long line\n", "a=1,b=2%2C3 two\n"},
		{"both", "1.44", "&details=1&timestamps=1", false, "application/vnd.docker.multiplexed-stream", stamp + "a=1,b=2%2C3 one\n" + stamp + "a=1,b=2%2C3 long line\n", stamp + "a=1,b=2%2C3 two\n"},
		{"terminal", "1.44", "", true, "application/vnd.docker.raw-stream", "one\ntwo\nlong line\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fake{logs: func(ctx context.Context, _ engine.LogsOptions) (engine.LogReader, bool, error) {
				return newTape(ctx, io.EOF, lines...), c.tty, nil
			}}
			res, err := http.Get(tcpServer(t, f) + "/v" + c.version + "/containers/web/logs?stdout=1&stderr=1" + c.query)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if got := res.Header.Get("Content-Type"); got != c.kind {
				t.Errorf("content type %q, want %q", got, c.kind)
			}
			var out, errOut bytes.Buffer
			if c.tty {
				_, err = io.Copy(&out, res.Body)
			} else {
				_, err = stdcopy.StdCopy(&out, &errOut, res.Body)
			}
			if err != nil || out.String() != c.out || errOut.String() != c.err {
				t.Errorf("stdout %q, stderr %q, %v\nwant   %q,        %q", out.String(), errOut.String(), err, c.out, c.err)
			}
		})
	}
}

func TestLogsOptionsArrive(t *testing.T) {
	for _, c := range []struct{ query, want string }{
		{"stdout=1", "ContainerLogs(w, true, false, false, %d, %d, -1)"},
		{"stderr=1&follow=1&tail=all&since=0", "ContainerLogs(w, false, true, true, %d, %d, -1)"},
		{"stdout=1&tail=0", "ContainerLogs(w, true, false, false, %d, %d, 0)"},
		{"stdout=1&tail=-5", "ContainerLogs(w, true, false, false, %d, %d, -1)"},
		{"stdout=1&since=12.5&until=2001-09-09T01:46:40Z", "ContainerLogs(w, true, false, false, 12500000000, 1000000000000000000, -1)"},
	} {
		f := &fake{err: errdefs.ErrNotFound}
		ask(handler(f), "GET", "/containers/w/logs?"+c.query, "")
		want := c.want
		if strings.Contains(want, "%d") {
			want = fmt.Sprintf(want, time.Time{}.UnixNano(), time.Time{}.UnixNano())
		}
		if f.last() != want {
			t.Errorf("%s: %s, want %s", c.query, f.last(), want)
		}
	}
}

func TestFollowedLogArrivesLineByLineAndEndsWithTheClient(t *testing.T) {
	tapes := make(chan *tape, 1)
	f := &fake{logs: func(ctx context.Context, _ engine.LogsOptions) (engine.LogReader, bool, error) {
		tp := newTape(ctx, nil)
		tapes <- tp
		return tp, true, nil
	}}
	ctx, cancel := context.WithCancel(t.Context())
	r, err := dial(t, serve(t, f), "").ContainerLogs(ctx, "web", client.ContainerLogsOptions{ShowStdout: true, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	// The head is sent although there is no line yet.
	tp := <-tapes
	br := bufio.NewReader(r)
	for i := range 3 {
		want := fmt.Sprintf("line %d\n", i)
		tp.lines <- line("stdout", want)
		if got, err := br.ReadString('\n'); got != want {
			t.Fatalf("read %q, %v, want %q", got, err, want)
		}
	}
	cancel()
	select {
	case <-tp.closed:
	case <-time.After(10 * time.Second):
		t.Error("the log stays open after the client has left")
	}
}

func TestLogThatFailsOnTheWaySaysSoInTheStream(t *testing.T) {
	f := &fake{logs: func(ctx context.Context, _ engine.LogsOptions) (engine.LogReader, bool, error) {
		return newTape(ctx, errors.New("file cut short"), line("stdout", "one\n")), false, nil
	}}
	res, err := http.Get(tcpServer(t, f) + "/containers/web/logs?stdout=1")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var out bytes.Buffer
	_, err = stdcopy.StdCopy(&out, &out, res.Body)
	if out.String() != "one\n" || err == nil || !strings.Contains(err.Error(), "file cut short") {
		t.Errorf("read %q, %v", out.String(), err)
	}
}

// burst is a log of n equal lines, in a buffer that each call reuses.
type burst struct {
	n   int
	buf []byte
}

func (b *burst) Next() (engine.LogLine, error) {
	if b.n == 0 {
		return engine.LogLine{}, io.EOF
	}
	b.n--
	b.buf = append(b.buf[:0], "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456\n"...)
	return engine.LogLine{Source: "stdout", Line: b.buf}, nil
}

// Buffered has every seventh line only from Next.
func (b *burst) Buffered() (engine.LogLine, bool) {
	if b.n%7 == 0 {
		return engine.LogLine{}, false
	}
	line, err := b.Next()
	return line, err == nil
}

func (b *burst) Close() error { return nil }

func TestLongLogArrivesWhole(t *testing.T) {
	const n = 200_000
	f := &fake{logs: func(context.Context, engine.LogsOptions) (engine.LogReader, bool, error) {
		return &burst{n: n}, false, nil
	}}
	began := time.Now()
	r, err := dial(t, serve(t, f), "").ContainerLogs(t.Context(), "web", client.ContainerLogsOptions{ShowStdout: true})
	if err != nil {
		t.Fatal(err)
	}
	var size countingWriter
	if _, err := stdcopy.StdCopy(&size, io.Discard, r); err != nil {
		t.Fatal(err)
	}
	if size != n*98 {
		t.Errorf("%d bytes, want %d", size, n*98)
	}
	t.Logf("%.0f MB/s", float64(size)/1e6/time.Since(began).Seconds())
}

type countingWriter int64

func (c *countingWriter) Write(p []byte) (int, error) {
	*c += countingWriter(len(p))
	return len(p), nil
}

func TestEventsInTheFormThatTheClientTakes(t *testing.T) {
	f := &fake{events: func(_ context.Context, _ engine.EventsOptions, send func(event.Message) error) error {
		send(event.Message{Type: "container", Action: "start", Actor: event.Actor{ID: "c1", Attributes: map[string]string{"image": "busybox"}}})
		return send(event.Message{Type: "network", Action: "connect", Actor: event.Actor{ID: "n1"}})
	}}
	const first = `"Type":"container","Action":"start","Actor":{"ID":"c1","Attributes":{"image":"busybox"}}}` + "\n"
	const second = `"Type":"network","Action":"connect","Actor":{"ID":"n1","Attributes":null}}` + "\n"
	for _, c := range []struct{ version, accept, kind, body string }{
		{"1.51", "", "application/json", `{"status":"start","id":"c1","from":"busybox",` + first + `{` + second},
		{"1.51", "application/json-seq", "application/json", `{"status":"start","id":"c1","from":"busybox",` + first + `{` + second},
		{"1.52", "", "application/jsonl", "{" + first + "{" + second},
		{"1.52", "application/jsonl", "application/json", "{" + first + "{" + second},
		{"1.53", "application/jsonl, application/x-ndjson;q=0.9, application/json-seq;q=0.5", "application/jsonl", "{" + first + "{" + second},
		{"1.53", "application/jsonl;q=0.1, application/json-seq;q=0.5", "application/json-seq", "\x1e{" + first + "\x1e{" + second},
		{"1.53", "text/html, */*;q=0.1", "application/x-ndjson", "{" + first + "{" + second},
		{"1.53", "application/json", "application/json", "{" + first + "{" + second},
	} {
		w := ask(handler(f), "GET", "/v"+c.version+"/events", "", "Accept", c.accept)
		if w.Header().Get("Content-Type") != c.kind || w.Body.String() != c.body {
			t.Errorf("%s %q: %s\n%s\nwant %s\n%s", c.version, c.accept, w.Header().Get("Content-Type"), w.Body, c.kind, c.body)
		}
	}
}

// TestEventsSendTheirHeadBeforeTheFirst: a client waits for the head before it
// causes events, and the engine is asked for all events since the request.
func TestEventsSendTheirHeadBeforeTheFirst(t *testing.T) {
	occur := make(chan event.Message)
	left := make(chan struct{})
	f := &fake{events: func(ctx context.Context, o engine.EventsOptions, send func(event.Message) error) error {
		defer close(left)
		if o.Since.IsZero() || time.Since(o.Since) > time.Minute {
			t.Errorf("since %v, want the time of the request", o.Since)
		}
		for {
			select {
			case m := <-occur:
				if err := send(m); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	res := dial(t, serve(t, f), "").Events(ctx, client.EventsListOptions{}) // returns once the head is read
	for _, id := range []string{"a", "b"} {
		occur <- event.Message{Type: "container", Actor: event.Actor{ID: id}}
		select {
		case m := <-res.Messages:
			if m.Actor.ID != id {
				t.Errorf("event of %q, want %q", m.Actor.ID, id)
			}
		case err := <-res.Err:
			t.Fatal(err)
		}
	}
	cancel()
	select {
	case <-left:
	case <-time.After(10 * time.Second):
		t.Error("the engine goes on after the client has left")
	}
}

// TestEventsWithAnEndOnlyAreReplayedFromTheBeginning: as dockerd does.
func TestEventsWithAnEndOnlyAreReplayedFromTheBeginning(t *testing.T) {
	var asked engine.EventsOptions
	f := &fake{events: func(_ context.Context, o engine.EventsOptions, _ func(event.Message) error) error {
		asked = o
		return nil
	}}
	if w := ask(handler(f), "GET", "/events?until=1700000000", ""); w.Code != 200 {
		t.Fatalf("%d %q", w.Code, w.Body)
	}
	if !asked.Since.IsZero() || asked.Until.Unix() != 1700000000 {
		t.Errorf("asked for %v to %v", asked.Since, asked.Until)
	}
}

func TestStatsAreSentAsTheyCome(t *testing.T) {
	next := make(chan struct{})
	f := &fake{stats: func(_ context.Context, emit func(container.StatsResponse) error) error {
		for i := range 3 {
			if err := emit(container.StatsResponse{ID: fmt.Sprint(i), OSType: "linux"}); err != nil {
				return err
			}
			<-next
		}
		return nil
	}}
	r, err := dial(t, serve(t, f), "").ContainerStats(t.Context(), "web", client.ContainerStatsOptions{Stream: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	dec := json.NewDecoder(r.Body)
	for i := range 3 {
		var s container.StatsResponse
		if err := dec.Decode(&s); err != nil || s.ID != fmt.Sprint(i) || s.OSType != "linux" {
			t.Fatalf("%+v, %v", s, err)
		}
		next <- struct{}{}
	}
	if want := "ContainerStats(web, true, false)"; f.last() != want {
		t.Errorf("called %s, want %s", f.last(), want)
	}
}

func TestPullThatFailsAtOnceHasAStatus(t *testing.T) {
	f := &fake{err: fmt.Errorf("pull access denied for a: %w", errdefs.ErrNotFound)}
	w := ask(handler(f), "POST", "/images/create?fromImage=a&tag=b", "")
	if w.Code != 404 || !strings.Contains(message(t, w), "pull access denied") {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

func TestPullThatFailsOnTheWaySaysSoInTheStream(t *testing.T) {
	f := &fake{pull: func(_ context.Context, progress func(jsonstream.Message)) error {
		progress(jsonstream.Message{Status: "Downloading", ID: "abc", Progress: &jsonstream.Progress{Current: 1, Total: 2}})
		return errors.New("connection reset")
	}}
	w := ask(handler(f), "POST", "/images/create?fromImage=a&tag=b", "")
	want := `{"status":"Downloading","progressDetail":{"current":1,"total":2},"id":"abc"}` + "\n" +
		`{"errorDetail":{"message":"connection reset"},"error":"connection reset"}` + "\n"
	if w.Code != 200 || w.Body.String() != want || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("%d %s\n%s\nwant\n%s", w.Code, w.Header().Get("Content-Type"), w.Body, want)
	}

	r, err := dial(t, serve(t, f), "").ImagePull(t.Context(), "a:b", client.ImagePullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Wait(t.Context()); err == nil || err.Error() != "connection reset" {
		t.Errorf("the client library saw %v", err)
	}
}

func TestPullStopsWhenTheClientGoes(t *testing.T) {
	begun, stopped := make(chan struct{}), make(chan struct{})
	f := &fake{pull: func(ctx context.Context, progress func(jsonstream.Message)) error {
		progress(jsonstream.Message{Status: "Pulling"})
		close(begun)
		<-ctx.Done()
		close(stopped)
		return ctx.Err()
	}}
	ctx, cancel := context.WithCancel(t.Context())
	r, err := dial(t, serve(t, f), "").ImagePull(ctx, "a:b", client.ImagePullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	<-begun
	cancel()
	select {
	case <-stopped:
	case <-time.After(10 * time.Second):
		t.Error("the pull goes on")
	}
}

// TestLoadAnswersWhileItReads: progress is sent long before the end of the
// archive, which must still be read to its end.
func TestLoadAnswersWhileItReads(t *testing.T) {
	const size = 8 << 20
	var read int64
	f := &fake{load: func(_ context.Context, src io.Reader, progress func(jsonstream.Message)) error {
		head := make([]byte, 512)
		if _, err := io.ReadFull(src, head); err != nil {
			return err
		}
		progress(jsonstream.Message{Status: "Loading layer", Progress: &jsonstream.Progress{Current: 1}})
		n, err := io.Copy(io.Discard, src)
		read = n + 512
		progress(jsonstream.Message{Stream: "Loaded image: a:b\n"})
		return err
	}}
	c := dial(t, serve(t, f), "")
	for _, quiet := range []bool{false, true} {
		r, err := c.ImageLoad(t.Context(), io.LimitReader(zeros{}, size), client.ImageLoadWithQuiet(quiet))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		r.Close()
		if err != nil || read != size {
			t.Errorf("read %d bytes of %d; %v", read, size, err)
		}
		if !strings.Contains(string(b), "Loaded image: a:b") || strings.Contains(string(b), "Loading layer") == quiet {
			t.Errorf("quiet %v: %q", quiet, b)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestImportDownloadsFromAURL: the archive may be fetched by the daemon.
func TestImportDownloadsFromAURL(t *testing.T) {
	files := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/root.tar" {
			http.NotFound(w, r)
			return
		}
		io.WriteString(w, "tar")
	}))
	defer files.Close()
	host := strings.TrimPrefix(files.URL, "http://")
	f := &fake{}
	w := ask(handler(f), "POST", "/images/create?repo=a&fromSrc="+host+"/root.tar", "")
	if w.Code != 200 || f.last() != "ImageImport(tar, docker.io/library/a:latest, Imported from "+host+"/root.tar, [], host)" {
		t.Errorf("%d %q, called %s", w.Code, w.Body, f.last())
	}
	f = &fake{}
	if w := ask(handler(f), "POST", "/images/create?fromSrc="+files.URL+"/missing", ""); w.Code != 500 || !strings.Contains(message(t, w), "404 Not Found") || f.last() != "" {
		t.Errorf("%d %q, called %s", w.Code, w.Body, f.last())
	}
}

// TestStreamsLeaveNoDescriptorBehind: the daemon closes its side of a
// connection that attach took over, whatever the kind of connection.
func TestStreamsLeaveNoDescriptorBehind(t *testing.T) {
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	ended := make(chan struct{}, 1)
	f := &fake{attach: func(_ context.Context, o engine.AttachOptions) error {
		c, err := o.Hijack(true)
		if err != nil {
			return err
		}
		c.File.Close()
		ended <- struct{}{}
		return nil
	}}
	path := serve(t, f)
	once := func() {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, "POST /containers/w/attach HTTP/1.1\r\nHost: x\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n\r\n")
		io.Copy(io.Discard, conn) // ends when every copy of the socket is closed
		<-ended
	}
	once()
	before := count()
	for range 20 {
		once()
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
