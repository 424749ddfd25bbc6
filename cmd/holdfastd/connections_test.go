// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"
)

// bounded serves h on a socket with at most n connections.
func bounded(t *testing.T, n int, h http.HandlerFunc) (dial func() net.Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	g := newGate()
	g.conns = newConnections(limits{conns: n, descriptor: 1 << 20, beyond: 3})
	g.open(h)
	s := &http.Server{Handler: g, ConnState: g.track, ConnContext: withConn}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return func() net.Conn {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(30 * time.Second))
		return c
	}
}

func get(t *testing.T, c net.Conn, path string) (int, error) {
	t.Helper()
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: d\r\n\r\n", path); err != nil {
		return 0, err
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, err
	}
	if path == "/stream" { // this body ends only with the connection
		return res.StatusCode, nil
	}
	defer res.Body.Close()
	_, err = io.ReadAll(res.Body)
	return res.StatusCode, err
}

func streams(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/stream" {
		w.WriteHeader(http.StatusOK)
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
}

func TestSilentConnectionsMakeRoom(t *testing.T) {
	dial := bounded(t, 5, streams)
	stream := dial()
	if code, err := get(t, stream, "/stream"); err != nil || code != 200 {
		t.Fatal(code, err)
	}
	var idle []net.Conn
	for range 20 {
		c := dial()
		idle = append(idle, c)
		if len(idle)%2 == 0 {
			io.WriteString(c, "GET / HT")
		} else if code, err := get(t, c, "/"); err != nil || code != 200 {
			t.Fatal(code, err)
		}
	}
	if code, err := get(t, dial(), "/"); err != nil || code != 200 {
		t.Errorf("%d %v", code, err)
	}
	if _, err := idle[0].Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the oldest connection is still open: %v", err)
	}
	// A connection with a running request stays open.
	stream.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := stream.Read(make([]byte, 1)); err == io.EOF {
		t.Error("a connection in use was closed")
	}
}

func TestOneClientTooManyIsToldSo(t *testing.T) {
	dial := bounded(t, 5, streams)
	for range 5 {
		if code, err := get(t, dial(), "/stream"); err != nil || code != 200 {
			t.Fatal(code, err)
		}
	}
	if code, err := get(t, dial(), "/"); err != nil || code != http.StatusServiceUnavailable {
		t.Errorf("%d %v, want 503", code, err)
	}
}
