// SPDX-License-Identifier: Apache-2.0

package takeover

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/test/kit"
)

// loop repeats a request until the context ends, and counts the successes.
type loop struct {
	name    string
	asked   int
	slowest time.Duration
	failed  []string
}

func (l *loop) run(ctx context.Context, ask func() error) {
	for ctx.Err() == nil {
		at := time.Now()
		err := ask()
		l.asked++
		l.slowest = max(l.slowest, time.Since(at))
		if err != nil {
			l.failed = append(l.failed, at.Format("15:04:05.000 ")+err.Error())
		}
	}
}

// call sends one request and reads its whole answer.
func call(c *http.Client, method, url, body string) error {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("%s: body: %w", method, err)
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, b)
	}
	return nil
}

func client(d *kit.Daemon, keepAlive bool) *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: !keepAlive,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", d.Socket)
		},
	}}
}

// plain is a client on one connection that repeats no request. An
// http.Transport would repeat some requests when a connection breaks.
type plain struct {
	d    *kit.Daemon
	conn net.Conn
	r    *bufio.Reader
}

// do sends a request. The connection stays open unless the daemon closes it.
func (p *plain) do(method, path string) (status int, closed bool, err error) {
	if p.conn == nil {
		if p.conn, err = net.Dial("unix", p.d.Socket); err != nil {
			return 0, false, err
		}
		p.r = bufio.NewReader(p.conn)
	}
	defer func() {
		if err != nil || closed {
			p.conn.Close()
			p.conn = nil
		}
	}()
	p.conn.SetDeadline(time.Now().Add(30 * time.Second))
	req, err := http.NewRequest(method, "http://h"+path, nil)
	if err != nil {
		return 0, false, err
	}
	if err := req.Write(p.conn); err != nil {
		return 0, false, err
	}
	resp, err := http.ReadResponse(p.r, req)
	if err != nil {
		return 0, false, err
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, false, err
	}
	return resp.StatusCode, resp.Close, nil
}

func TestClientsLoseNoRequestOverFiftyTakeovers(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{LiveRestore: true, Flags: []string{"-H", "unix://", "-H", "tcp://127.0.0.1:0"}})
	d.Load(image, kit.Busybox(t, nil))
	d.Holdfast("run", "-d", "--name", "web", "-p", "127.0.0.1::80", image, "httpd", "-f", "-h", "/www")
	p := kit.Probe(t, "http://"+d.Holdfast("port", "web", "80/tcp")+"/index.html")
	p.WaitAnswer(t)
	_, rest, ok := strings.Cut(d.Log(), "API listen on tcp://")
	if !ok {
		t.Fatal(d.Log())
	}
	tcp := "http://" + rest[:strings.IndexAny(rest, "\"\n")]

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var loops []*loop
	var wg sync.WaitGroup
	start := func(name string, ask func() error) {
		l := &loop{name: name}
		loops = append(loops, l)
		wg.Go(func() { l.run(ctx, ask) })
	}
	kept, fresh := client(d, true), client(d, false)
	tcpKept := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{}}
	start("ping, a connection each", func() error { return call(fresh, "GET", "http://h/_ping", "") })
	start("list, connection kept", func() error { return call(kept, "GET", "http://h/containers/json", "") })
	start("list over tcp, connection kept", func() error { return call(tcpKept, "GET", tcp+"/containers/json", "") })
	raw := &plain{d: d}
	start("ping and prune, kept, nothing tried twice", func() error {
		for _, r := range [][2]string{{"GET", "/_ping"}, {"POST", "/images/prune"}} {
			if status, _, err := raw.do(r[0], r[1]); err != nil || status != http.StatusOK {
				return fmt.Errorf("%s: %d %w", r[1], status, err)
			}
		}
		return nil
	})
	n := 0
	effects := client(d, true)
	start("volume made and removed, connection kept", func() error {
		n++
		if err := call(effects, "POST", "http://h/volumes/create", fmt.Sprintf(`{"Name":"v%d"}`, n)); err != nil {
			return err
		}
		return call(effects, "DELETE", fmt.Sprintf("http://h/volumes/v%d", n), "")
	})
	m := 0
	start("container made and removed, a connection each", func() error {
		m++
		if err := call(fresh, "POST", fmt.Sprintf("http://h/containers/create?name=c%d", m), `{"Image":"`+image+`","Cmd":["true"]}`); err != nil {
			return err
		}
		return call(fresh, "DELETE", fmt.Sprintf("http://h/containers/c%d", m), "")
	})
	for range 50 {
		d.Takeover()
	}
	cancel()
	wg.Wait()
	for _, l := range loops {
		t.Logf("%-50s %6d asked, slowest %s", l.name, l.asked, l.slowest.Round(time.Microsecond))
		if l.asked < 20 {
			t.Errorf("%s: only %d requests", l.name, l.asked)
		}
		if len(l.failed) > 0 {
			t.Errorf("%s: %d of %d failed:\n%s", l.name, len(l.failed), l.asked, strings.Join(l.failed[:min(5, len(l.failed))], "\n"))
		}
	}
	for _, c := range []*http.Client{kept, tcpKept, effects} {
		c.CloseIdleConnections()
	}
	if r := p.Stop(); len(r.Failures) > 0 || r.Answered == 0 {
		t.Error(r)
	}
}

func TestRequestOnAConnectionKeptFromBeforeIsAnsweredByTheNewDaemon(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{})
	c := &plain{d: d}
	if status, closed, err := c.do("GET", "/_ping"); status != 200 || closed || err != nil {
		t.Fatal(status, closed, err)
	}
	d.Takeover()
	d.Takeover()
	old := d.Predecessors()
	select {
	case <-old[0].Exited:
		t.Error("the old daemon has not finished with a client")
	default:
	}
	// A request with an effect, which no client would repeat.
	if status, closed, err := c.do("POST", "/images/prune"); status != 200 || !closed || err != nil {
		t.Errorf("answer to the late request: %d, connection closed %v, %v", status, closed, err)
	}
	<-old[0].Exited
	<-old[1].Exited
}

// Where one operation always starts before the last one has ended, a takeover
// waits only for the operations that were under way when it was requested.
func TestTakeoverComesToItsTurnWhereContainersAreAlwaysBusy(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(t, nil))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := client(d, false)
	var wg sync.WaitGroup
	var loops []*loop
	for i := range 3 {
		name := fmt.Sprintf("box%d", i)
		d.Holdfast("run", "-d", "--name", name, "--stop-signal", "KILL", image, "sleep", "1000")
		l := &loop{name: name}
		loops = append(loops, l)
		wg.Go(func() {
			l.run(ctx, func() error { return call(c, http.MethodPost, "http://d/containers/"+name+"/restart", "") })
		})
	}
	for range 3 {
		at := time.Now()
		if err := d.TryTakeover(); err != nil {
			t.Errorf("after %s: %v", time.Since(at).Round(time.Millisecond), err)
		}
		t.Logf("a takeover in %s", time.Since(at).Round(time.Millisecond))
	}
	cancel()
	wg.Wait()
	for _, l := range loops {
		if len(l.failed) > 0 {
			t.Errorf("%s: %s", l.name, strings.Join(l.failed, "\n"))
		}
	}
}
