// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// api is a plain client of Docker's API, so that no client library is measured.
type api struct {
	http   *http.Client
	socket string
}

func connect(socket string) (*api, error) {
	return &api{socket: socket, http: &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 64,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}, nil
}

func (a *api) try(method, path string, body, into any) error {
	var r io.Reader
	kind := "application/json"
	switch b := body.(type) {
	case nil:
	case io.Reader:
		r, kind = b, "application/x-tar"
	default:
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		r = bytes.NewReader(text)
	}
	req, err := http.NewRequest(method, "http://engine/v1.41"+path, r)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 400 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, text)
	}
	if into != nil {
		return json.Unmarshal(text, into)
	}
	return nil
}

func (a *api) must(t testing.TB, method, path string, body, into any) {
	t.Helper()
	if err := a.try(method, path, body, into); err != nil {
		t.Error(err)
	}
}

// waitUp waits until the API answers.
func (a *api) waitUp() error {
	deadline := time.Now().Add(patience)
	for {
		err := a.try("GET", "/_ping", nil, nil)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		<-time.After(500 * time.Microsecond)
	}
}

func (a *api) removeAll() {
	var list []struct{ ID string }
	if a.try("GET", "/containers/json?all=1", nil, &list) != nil {
		return
	}
	var slots = make(chan struct{}, 8)
	each(len(list), func(i int) {
		slots <- struct{}{}
		a.try("DELETE", "/containers/"+list[i].ID+"?force=1&v=1", nil, nil)
		<-slots
	})
}

func daemonVersion(t testing.TB, socket string) string {
	a, _ := connect(socket)
	var v struct{ Version string }
	a.must(t, "GET", "/version", nil, &v)
	return v.Version
}

var ports atomic.Int64

// nextPort returns a port below the range that the kernel uses for outgoing
// connections.
func nextPort() string { return strconv.FormatInt(10000+ports.Add(1)%20000, 10) }

// web is the configuration of a container that serves a page on a published
// port. PID 1 of a container ignores SIGTERM, so another stop signal is set.
func web(port string) map[string]any {
	return map[string]any{
		"Image": imageRef, "Cmd": []string{"httpd", "-f", "-p", "80", "-h", "/www"}, "StopSignal": "SIGKILL",
		"ExposedPorts": map[string]any{"80/tcp": map[string]any{}},
		"HostConfig":   map[string]any{"PortBindings": map[string]any{"80/tcp": []map[string]string{{"HostPort": port}}}},
	}
}

// runDetached does what "run -d -p" does: it creates and starts a container,
// and waits until the port has answered.
func (a *api) runDetached(t testing.TB) (id, port string) {
	t.Helper()
	port = nextPort()
	var c struct{ ID string }
	a.must(t, "POST", "/containers/create", web(port), &c)
	a.must(t, "POST", "/containers/"+c.ID+"/start", nil, nil)
	if err := answered(port); err != nil {
		t.Error(err)
	}
	return c.ID, port
}

var page = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func ask(port string) error {
	resp, err := page.Get("http://127.0.0.1:" + port + "/index.html")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != 200 {
		return errors.New(resp.Status)
	}
	return err
}

func answered(port string) error {
	deadline := time.Now().Add(patience)
	for {
		err := ask(port)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		<-time.After(500 * time.Microsecond)
	}
}

// runRemove does what the command "run --rm true" does: create, attach, wait
// for the removal, start, read to the end.
func (a *api) runRemove(t testing.TB) {
	t.Helper()
	var c struct{ ID string }
	a.must(t, "POST", "/containers/create", map[string]any{
		"Image": imageRef, "Cmd": []string{"true"}, "AttachStdout": true, "AttachStderr": true,
		"HostConfig": map[string]any{"AutoRemove": true},
	}, &c)
	if c.ID == "" {
		return
	}
	stream, err := net.Dial("unix", a.socket)
	if err != nil {
		t.Error(err)
		return
	}
	defer stream.Close()
	fmt.Fprintf(stream, "POST /v1.41/containers/%s/attach?stream=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: engine\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n", c.ID)
	head := make([]byte, 4096)
	if n, err := stream.Read(head); err != nil || !strings.HasPrefix(string(head[:n]), "HTTP/1.1 101") {
		t.Errorf("attach: %v: %s", err, head[:n])
		return
	}
	var w sync.WaitGroup
	// The daemon sends the header of the answer to a wait as soon as the wait
	// is registered.
	resp, err := a.http.Post("http://engine/v1.41/containers/"+c.ID+"/wait?condition=removed", "application/json", nil)
	if err != nil {
		t.Error(err)
		return
	}
	w.Go(func() {
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || !strings.Contains(string(text), `"StatusCode":0`) {
			t.Errorf("wait: %v: %s", err, text)
		}
	})
	w.Go(func() {
		if _, err := io.Copy(io.Discard, stream); err != nil {
			t.Error(err)
		}
	})
	a.must(t, "POST", "/containers/"+c.ID+"/start", nil, nil)
	w.Wait()
}

// stopRemove does what "stop" and "rm" do.
func (a *api) stopRemove(t testing.TB, id string) {
	t.Helper()
	a.must(t, "POST", "/containers/"+id+"/stop", nil, nil)
	a.must(t, "DELETE", "/containers/"+id, nil, nil)
}

// ps repeats "ps" and returns the median of its times.
func (a *api) ps(t testing.TB, rounds, want int) time.Duration {
	t.Helper()
	var times []time.Duration
	for range rounds {
		begin := time.Now()
		var list []struct{ ID string }
		a.must(t, "GET", "/containers/json", nil, &list)
		times = append(times, time.Since(begin))
		if len(list) != want {
			t.Errorf("%d containers listed, want %d", len(list), want)
		}
	}
	return median(times)
}

// refusal requests a page from a port continuously until stop, and records the
// longest time without an answer.
type refusal struct {
	stop chan struct{}
	done chan struct{}
	max  time.Duration
}

func watch(port string) *refusal {
	r := &refusal{stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(r.done)
		var since time.Time // time of the first failed request
		for {
			begin := time.Now()
			if err := ask(port); err != nil {
				if since.IsZero() {
					since = begin
				}
			} else if !since.IsZero() {
				r.max = max(r.max, time.Since(since))
				since = time.Time{}
			}
			select {
			case <-r.stop:
				if !since.IsZero() {
					r.max = max(r.max, time.Since(since))
				}
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	return r
}

func (r *refusal) end() time.Duration {
	close(r.stop)
	<-r.done
	return r.max
}

// say writes a text to a container's standard input and closes it.
func (a *api) say(id, text string) error {
	c, err := net.Dial("unix", a.socket)
	if err != nil {
		return err
	}
	defer c.Close()
	fmt.Fprintf(c, "POST /v1.41/containers/%s/attach?stream=1&stdin=1 HTTP/1.1\r\nHost: engine\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n", id)
	head := make([]byte, 4096)
	if n, err := c.Read(head); err != nil || !strings.HasPrefix(string(head[:n]), "HTTP/1.1 101") {
		return fmt.Errorf("attach: %w: %s", err, head[:n])
	}
	_, err = io.WriteString(c, text)
	return err
}
