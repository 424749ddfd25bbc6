// SPDX-License-Identifier: Apache-2.0

package eventserver

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/event"
	"holdfast/internal/filter"
)

// TestMain runs the event server in a process that a test started as one.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == Command {
		if err := Run(os.NewFile(ControlFD, "control"), os.Args[2]); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var noon = time.Date(2030, 1, 2, 12, 0, 0, 0, time.UTC)

const patience = 30 * time.Second

// daemon is a journal with a Server, as in a daemon.
type daemon struct {
	t       *testing.T
	dir     string
	journal *event.Journal
	lives   *event.Lives
	server  *Server
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	d := &daemon{t: t, dir: t.TempDir()}
	d.open()
	d.server = New(Options{Journal: d.dir, RunDir: t.TempDir()})
	t.Cleanup(func() {
		d.leave()
		d.journal.Close()
	})
	return d
}

func (d *daemon) open() {
	d.t.Helper()
	var err error
	if d.journal, err = event.Open(d.dir, event.Options{}); err != nil {
		d.t.Fatal(err)
	}
	if d.lives, err = event.OpenLives(d.dir); err != nil {
		d.t.Fatal(err)
	}
	if _, err := d.lives.Begin(event.Life{Pid: os.Getpid(), Start: noon}); err != nil {
		d.t.Fatal(err)
	}
}

// leave closes the connection to the event server, as a daemon's death does.
func (d *daemon) leave() {
	if p := d.server.live.Load(); p != nil {
		p.conn.Close()
	}
}

func (d *daemon) happens(action, id string, at time.Time) {
	d.t.Helper()
	m := event.New("container", action, id, map[string]string{"image": "busybox"}, at)
	m.Source = "box/1:" + id
	if ok, err := d.journal.Append(m); !ok || err != nil {
		d.t.Fatal(ok, err)
	}
}

// client passes a client to the event server and reads its answer.
func (d *daemon) client(r Request) (*bufio.Reader, net.Conn) {
	d.t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	near, far := os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far")
	conn, err := net.FileConn(near)
	near.Close()
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { conn.Close() })
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		d.t.Fatal(err)
	}
	r.Head = []byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
	err = d.server.Serve(far, r)
	far.Close()
	if err != nil {
		d.t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		d.t.Fatal(err)
	}
	return bufio.NewReader(res.Body), conn
}

func next(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return line
}

func TestClientSeesTheDesiredPastAndWhatFollows(t *testing.T) {
	d := newDaemon(t)
	d.happens("create", "1", noon)
	d.happens("start", "2", noon.Add(time.Minute))
	d.happens("start", "3", noon.Add(2*time.Minute))
	from := d.journal.End()
	d.happens("die", "4", noon.Add(time.Second)) // recorded late, after the request
	all, _ := d.client(Request{From: from, Since: noon.Add(30 * time.Second)})
	started, _ := d.client(Request{From: from, Since: noon, Filters: filter.Args{"event": {"start"}}})
	present, _ := d.client(Request{From: from, Legacy: true})
	sequence, _ := d.client(Request{From: from, Sequence: true})
	d.happens("start", "5", noon.Add(time.Hour))

	for _, c := range []struct {
		name string
		r    *bufio.Reader
		ids  string
	}{{"all", all, "2345"}, {"started", started, "235"}, {"present", present, "45"}} {
		for _, id := range c.ids {
			var m struct {
				ID    string `json:"id"`
				From  string `json:"from"`
				Actor struct{ ID string }
			}
			line := next(t, c.r)
			if err := json.Unmarshal([]byte(line), &m); err != nil || m.Actor.ID != string(id) || strings.Contains(line, "source") {
				t.Errorf("%s: %q, %v, want event %c", c.name, line, err, id)
			}
			if legacy := m.ID == m.Actor.ID && m.From == "busybox"; legacy != (c.name == "present") {
				t.Errorf("%s: %q: the fields of old clients: %v", c.name, line, legacy)
			}
		}
	}
	if line := next(t, sequence); line[0] != 0x1e {
		t.Errorf("%q begins without a record separator", line)
	}
	if n := d.server.Clients(); n != 4 {
		t.Errorf("%d clients, want 4", n)
	}
}

func TestClientFollowsTheNextDaemon(t *testing.T) {
	d := newDaemon(t)
	r, _ := d.client(Request{From: d.journal.End()})
	d.happens("start", "1", noon)
	d.leave()
	d.journal.Close()
	d.open()
	d.happens("die", "2", noon)
	for _, id := range []string{"1", "2"} {
		if line := next(t, r); !strings.Contains(line, `"ID":"`+id+`"`) {
			t.Errorf("%q, want event %s", line, id)
		}
	}
}

func TestStreamEndsAsItShould(t *testing.T) {
	d := newDaemon(t)
	until, _ := d.client(Request{From: d.journal.End(), Until: time.Now().Add(100 * time.Millisecond)})
	if text, err := io.ReadAll(until); err != nil || len(text) > 0 {
		t.Errorf("to a time: %q, %v", text, err)
	}

	kept, conn := d.client(Request{From: d.journal.End()})
	if err := d.lives.End(event.EndClean, noon, false); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := kept.ReadByte(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the daemon stopped without its containers, and the stream ends with %v", err)
	}

	stopped, _ := d.client(Request{From: d.journal.End()})
	d.happens("die", "1", noon)
	if err := d.lives.End(event.EndClean, noon, true); err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(stopped); err != nil || !strings.Contains(string(text), `"die"`) {
		t.Errorf("the daemon stopped with its containers: %q, %v", text, err)
	}

	other := newDaemon(t)
	lost, _ := other.client(Request{From: other.journal.End()})
	if err := other.journal.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(other.dir); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(lost); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the journal was removed: %v, want a stream that was cut", err)
	}
}

func TestProcessEndsWithDaemonAndClients(t *testing.T) {
	d := newDaemon(t)
	_, conn := d.client(Request{From: d.journal.End()})
	p := d.server.live.Load()
	if err := p.conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	select {
	case <-p.gone:
	case <-time.After(patience):
		t.Fatal("the event server does not end without daemon and clients")
	}
	// Another process is started for the next client.
	r, _ := d.client(Request{From: d.journal.End()})
	d.happens("start", "1", noon)
	next(t, r)
}

func TestLargeFiltersStayWithTheDaemon(t *testing.T) {
	if !Fits(Request{Filters: filter.Args{"label": {"a=b"}}}) {
		t.Error("a small request does not fit")
	}
	if Fits(Request{Filters: filter.Args{"label": {strings.Repeat("a", messageLimit)}}}) {
		t.Error("a request larger than a message fits")
	}
}
