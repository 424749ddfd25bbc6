// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"holdfast/internal/api/wire"
	"holdfast/internal/beside"
	"holdfast/internal/errs"
)

// process stands for the one that builds. It answers each client with the request
// that it reads from the client's socket.
type process struct {
	used            bool
	notReady, gives error
}

func (p *process) Ready(context.Context) error { return p.notReady }
func (p *process) Used() bool                  { return p.used }

func (p *process) Give(_ context.Context, client beside.Client, headers map[string][]string) error {
	if p.gives != nil {
		return p.gives
	}
	conn, err := net.FileConn(client.File)
	if err != nil {
		return err
	}
	go func() {
		defer conn.Close()
		r, err := http.ReadRequest(bufio.NewReader(io.MultiReader(bytes.NewReader(client.Pending), conn)))
		if err != nil {
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		text := r.Method + " " + r.RequestURI + " " + r.Header.Get("X-Test") + " " + string(body) + " " + strings.Join(headers["Server"], "")
		resp := http.Response{StatusCode: 200, ProtoMajor: 1, ProtoMinor: 1, ContentLength: int64(len(text)), Body: io.NopCloser(strings.NewReader(text)), Close: true}
		_ = resp.Write(conn)
	}()
	return nil
}

func serve(t *testing.T, b Backend) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "name")
		for _, route := range Routes(b) {
			if route.Method+" "+route.Path == r.Method+" "+r.URL.Path {
				if err := route.Handle(w, &wire.Request{Request: r, Query: r.URL.Query(), Log: slog.Default()}); err != nil {
					wire.WriteError(w, err)
				}
				return
			}
		}
	}))
	s.Config.ConnContext = wire.WithConn
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func post(t *testing.T, s *httptest.Server, path string, body io.Reader) (int, string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, s.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Test", "value")
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestRequestIsMovedWhole(t *testing.T) {
	s := serve(t, &process{})
	large := strings.Repeat("x", 1<<20)
	for name, body := range map[string]io.Reader{
		"known length": strings.NewReader(large), "chunked": io.MultiReader(strings.NewReader(large)),
	} {
		code, got := post(t, s, "/build?t=a%20b", body)
		if want := "POST /build?t=a%20b value " + large + " name"; code != 200 || got != want {
			t.Errorf("%s: %d, %d bytes, %.60s", name, code, len(got), got)
		}
	}
	if code, got := post(t, s, "/build/cancel?id=1", nil); code != 200 || got != "POST /build/cancel?id=1 value  name" {
		t.Errorf("without a body: %d %q", code, got)
	}
}

func TestRequestThatCantBeMovedIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		b    Backend
		code int
	}{
		"no builds":     {nil, http.StatusNotImplemented},
		"not installed": {&process{notReady: errs.NotImplemented("not installed")}, http.StatusNotImplemented},
		"ended":         {&process{gives: errs.Unavailable("the process has ended")}, http.StatusServiceUnavailable},
	} {
		if code, got := post(t, serve(t, c.b), "/build", strings.NewReader("body")); code != c.code || !strings.Contains(got, "message") {
			t.Errorf("%s: %d %s, want %d", name, code, got, c.code)
		}
	}
}

func TestPruneOfNothingStartsNoProcess(t *testing.T) {
	b := &process{notReady: errs.Unavailable("must not be asked")}
	if code, got := post(t, serve(t, b), "/build/prune", nil); code != 200 || !strings.Contains(got, `"SpaceReclaimed":0`) {
		t.Errorf("%d %s", code, got)
	}
	b = &process{used: true}
	if code, got := post(t, serve(t, b), "/build/prune", nil); code != 200 || !strings.HasPrefix(got, "POST /build/prune") {
		t.Errorf("%d %s", code, got)
	}
}
