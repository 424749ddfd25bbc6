// SPDX-License-Identifier: Apache-2.0

package fuzz

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/test/kit"
)

// daemonEnv passes the daemon to the workers of a fuzzing process: its pid, its
// socket, and the ID of the innocent container.
const daemonEnv = "HOLDFAST_FUZZ_DAEMON"

const (
	// soon is the time limit for an answer on a busy machine.
	soon = 60 * time.Second
	// watched is how long a stream is read.
	watched = 200 * time.Millisecond
)

// target is the daemon under test.
type target struct {
	Pid      int
	Socket   string
	Innocent string // ID of a container that no request refers to
	Process  int    // pid of its process
	Image    string // archive of the image

	http *http.Client
	exec string // ID of an exec session in the container web
	sent int
	// statuses counts the answers by status.
	statuses map[int]int
	first    size // after some requests, when caches are filled
}

type size struct{ descriptors, goroutines, kilobytes int }

// Growth up to these bounds comes from caches, stored events and garbage.
var slack = size{descriptors: 100, goroutines: 200, kilobytes: 200 << 10}

// settleAfter and checkEvery are numbers of requests.
const (
	settleAfter = 300
	checkEvery  = 100
)

// begin starts the daemon, or finds the one that the fuzzing process has
// started.
func begin(f testing.TB) *target {
	f.Helper()
	t := &target{}
	if s := os.Getenv(daemonEnv); s != "" {
		if err := json.Unmarshal([]byte(s), t); err != nil {
			f.Fatal(err)
		}
		t.connect()
		return t
	}
	d := kit.Start(f, kit.Options{LiveRestore: true})
	d.HearOut()
	d.Load(image, kit.Busybox(f, nil))
	t.Pid, t.Socket, t.Image = d.Pid(), d.Socket, d.Root+"/image.tar"
	d.Docker("save", "-o", t.Image, image)
	t.Innocent = d.Docker("run", "-d", "--name", "innocent", image, "sleep", "86400")
	t.connect()
	t.Process = t.process(f)
	text, err := json.Marshal(t)
	if err != nil {
		f.Fatal(err)
	}
	if f, ok := f.(*testing.F); ok {
		f.Setenv(daemonEnv, string(text))
	}
	return t
}

func (d *target) connect() {
	d.statuses = map[int]int{}
	d.http = &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DisableCompression: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", d.Socket)
			},
		},
	}
}

// call sends a request of the test itself, which must be answered in time.
func (d *target) call(t testing.TB, method, path string, body io.Reader, into any) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://d"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := d.http.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	if into != nil {
		if err := json.Unmarshal(text, into); err != nil {
			t.Fatalf("%s %s: %v: %.300s", method, path, err, text)
		}
	}
	return res.StatusCode
}

// process is the pid of the innocent container's process.
func (d *target) process(t testing.TB) int {
	t.Helper()
	var c struct{ State struct{ Pid int } }
	d.call(t, "GET", "/containers/"+d.Innocent+"/json", nil, &c)
	return c.State.Pid
}

// fixtures creates the objects that the requests refer to, if an earlier
// request has removed them. It also removes superfluous objects.
func (d *target) fixtures(t testing.TB) {
	t.Helper()
	var all []struct {
		ID    string `json:"Id"`
		Names []string
		State string
	}
	d.call(t, "GET", "/containers/json?all=1", nil, &all)
	have := map[string]string{}
	for _, c := range all {
		if len(c.Names) > 0 {
			have[strings.TrimPrefix(c.Names[0], "/")] = c.State
		}
	}
	if len(all) > 12 || have[web] != "" && have[web] != "running" {
		for _, c := range all {
			if c.ID != d.Innocent {
				d.call(t, "DELETE", "/containers/"+c.ID+"?force=1&v=1", nil, nil)
			}
		}
		d.call(t, "POST", "/networks/prune", nil, nil)
		d.call(t, "POST", `/volumes/prune?filters={"all":{"true":true}}`, nil, nil)
		have = map[string]string{}
	}
	if d.call(t, "GET", "/images/"+image+"/json", nil, nil) != http.StatusOK {
		f, err := os.Open(d.Image)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		d.call(t, "POST", "/images/load", f, nil)
	}
	make := func(path, body string) {
		d.call(t, "POST", path, strings.NewReader(body), nil)
	}
	make("/volumes/create", `{"Name":"`+vol+`"}`)
	make("/networks/create", `{"Name":"`+netw+`"}`)
	if have[web] == "" {
		make("/containers/create?name="+web, `{"Image":"`+image+`","Cmd":["sh","-c","trap exit TERM; echo hello; while :; do sleep 1; done"],"Labels":{"a":"b"},"HostConfig":{"Binds":["`+vol+`:/data"],"NetworkMode":"`+netw+`"}}`)
		d.call(t, "POST", "/containers/"+web+"/start", nil, nil)
		d.exec = ""
	}
	if have[stopped] == "" {
		make("/containers/create?name="+stopped, `{"Image":"`+image+`","Cmd":["true"]}`)
	}
	if d.exec == "" {
		var e struct {
			ID string `json:"Id"`
		}
		d.call(t, "POST", "/containers/"+web+"/exec", strings.NewReader(`{"Cmd":["true"],"AttachStdout":true}`), &e)
		d.exec = e.ID
	}
}

// meansInnocent reports whether a name could refer to the innocent container.
func (d *target) meansInnocent(name string) bool {
	name = strings.TrimPrefix(name, "/")
	return name == "innocent" || name != "" && strings.HasPrefix(d.Innocent, name)
}

// requests and lasting are how many requests TestRandomRequests sends at least,
// and for how long.
var (
	requests = flag.Int("requests", 150, "random requests to send at least")
	lasting  = flag.Duration("lasting", 0, "how long to send random requests at least")
	seed     = flag.Uint64("seed", 1, "of the random requests")
)

// TestRandomRequests is FuzzAPI without Go's fuzzing engine. The engine can't
// see the coverage of another process, and it aborts an input after ten
// seconds.
func TestRandomRequests(t *testing.T) {
	d := begin(t)
	random := rand.New(rand.NewPCG(*seed, 0))
	began := time.Now()
	for i := 0; i < *requests || time.Since(began) < *lasting; i++ {
		choice := make([]byte, random.IntN(200))
		for i := range choice {
			choice[i] = byte(random.Uint32())
		}
		operation := operations[random.IntN(len(operations))]
		// Some operations matter more than others.
		if random.IntN(3) == 0 {
			all := slices.Sorted(maps.Keys(bodies))
			operation = all[random.IntN(len(all))]
		}
		t.Run("", func(t *testing.T) {
			d.try(t, operation, &choices{choice}, raws[random.IntN(len(raws))])
		})
		if t.Failed() && i >= *requests && time.Since(began) > *lasting {
			break
		}
	}
	t.Logf("%d requests, by status: %v", d.sent, d.statuses)
}

// raws are bodies that belong to no type.
var raws = [][]byte{
	nil, []byte("{}"), []byte("null"), []byte("[]"), []byte(`{"a":`), []byte(`"x"`), []byte("\x00\x00"), bytes.Repeat([]byte("{\"a\":["), 6000),
	bytes.Repeat([]byte("x"), 1<<20), tarOf("a.txt"), tarOf("../a"), tarOf("a/b/c"), tarOf("manifest.json"), tarOf("index.json"), tarOf("repositories"), tarOf(long),
}

func tarOf(name string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	_ = w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: 2, Typeflag: tar.TypeReg})
	_, _ = w.Write([]byte("{}"))
	_ = w.Close()
	return b.Bytes()
}

func FuzzAPI(f *testing.F) {
	d := begin(f)
	// Every operation once.
	for i := range operations {
		f.Add(uint16(i), []byte{0, byte(i), 0, 3, byte(i), 1, byte(3 * i), 2, 5, byte(i), 11, 4, 9, byte(5 * i), 8, 1, 6, 3}, []byte("{}"))
	}
	f.Fuzz(func(t *testing.T, op uint16, choice, raw []byte) {
		d.try(t, operations[int(op)%len(operations)], &choices{choice}, raw)
	})
}

// try sends one request and checks the answer. From time to time it checks the
// daemon as well.
func (d *target) try(t *testing.T, operation string, c *choices, raw []byte) {
	if d.sent%10 == 0 {
		d.fixtures(t)
	}
	d.sent++
	method, pattern, _ := strings.Cut(operation, " ")
	name := c.object(operation, d.exec)
	if d.meansInnocent(name) {
		name = web
	}
	path := pattern
	for _, v := range []string{"{name}", "{name...}", "{alias}", "{checkpoint}"} {
		path = strings.ReplaceAll(path, v, url.PathEscape(name))
	}
	switch c.of(8) {
	case 6:
		path = pick(c, "/v1.24", "/v1.30", "/v1.41", "/v1.47", "/v1.52", "/v1.56") + path
	case 7:
		path = pick(c, "/v1.23", "/v1.99", "/v0", "/v", "/v1.x", "//", "/v1."+strings.Repeat("9", 30)) + path
	}
	query := c.query(operation)
	var body []byte
	if kind := bodies[operation]; kind != nil {
		body = c.body(kind, raw)
	} else if method != "GET" && method != "HEAD" && c.oneIn(4) {
		body = raw
	}

	limit := soon
	if follows[operation] {
		limit = watched
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var content io.Reader
	if body != nil {
		content = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://d/", content)
	if err != nil {
		t.Fatal(err)
	}
	// The path is passed on unparsed, because the client's parser would refuse
	// some.
	req.URL.Opaque = "//d" + path
	if query != "" {
		req.URL.RawQuery = query
	}
	if body != nil {
		req.Header.Set("Content-Type", pick(c, "application/json", "application/json", "application/json", "text/plain", "application/x-tar", "\"", ""))
	}
	if c.oneIn(6) {
		h := pick(c, "X-Registry-Auth", "X-Registry-Config", "Upgrade", "Connection", "Accept", "Sec-WebSocket-Key")
		v := pick(c, base64.URLEncoding.EncodeToString(raw), "e30=", "!!", "tcp", "websocket", "{}", strings.Repeat("a", 5000))
		req.Header.Set(h, v)
	}
	what := fmt.Sprintf("%s %s?%s %.2000q", method, path, query, body)
	res, err := d.http.Do(req)
	switch {
	case err == nil:
		text, err := io.ReadAll(io.LimitReader(res.Body, 64<<20))
		res.Body.Close()
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && limit == soon && errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%s: the answer took longer than %s", what, limit)
		}
		d.judge(t, operation, what, res, text)
	case limit == soon && errors.Is(err, context.DeadlineExceeded):
		t.Fatalf("%s: no answer in %s", what, limit)
	case ctx.Err() == nil && !strings.Contains(err.Error(), "malformed") && !strings.Contains(err.Error(), "invalid header"):
		t.Fatalf("%s: %v", what, err)
	}
	if d.sent%checkEvery == 0 {
		d.check(t)
	}
}

func (d *target) judge(t *testing.T, operation, what string, res *http.Response, text []byte) {
	code := res.StatusCode
	d.statuses[code]++
	switch {
	case code == http.StatusNotImplemented:
	case code == http.StatusServiceUnavailable && asksOthers[operation], code == http.StatusInternalServerError && asksOthers[operation]:
		if !strings.Contains(string(text), "127.0.0.1:1") && !strings.Contains(string(text), "dial") && !strings.Contains(string(text), "lookup") {
			t.Fatalf("%s: %d %.1000s", what, code, text)
		}
	case code == http.StatusServiceUnavailable && ofSwarm[operation] && strings.Contains(string(text), "This node is not "):
	case code >= 500:
		t.Fatalf("%s: %d %.1000s", what, code, text)
	}
	if code >= 400 && res.Request.Method != "HEAD" {
		var e struct{ Message string }
		if json.Unmarshal(text, &e) == nil && e.Message == "" {
			t.Fatalf("%s: %d without a message: %.1000s", what, code, text)
		}
	}
}

// check checks that the daemon has neither exited nor grown, and that the
// innocent container runs.
func (d *target) check(t *testing.T) {
	t.Helper()
	if pid := d.process(t); pid != d.Process {
		t.Fatalf("the innocent container's process was %d and is now %d", d.Process, pid)
	}
	if d.sent < settleAfter {
		return
	}
	// The figures may exceed their bounds for a moment, because requests of
	// disconnected clients end a little later.
	deadline := time.NewTimer(soon)
	defer deadline.Stop()
	again := time.NewTicker(500 * time.Millisecond)
	defer again.Stop()
	for {
		now := d.size(t)
		if d.first == (size{}) {
			d.first = now
		}
		grown := now.descriptors > d.first.descriptors+slack.descriptors || now.goroutines > d.first.goroutines+slack.goroutines || now.kilobytes > d.first.kilobytes+slack.kilobytes
		if !grown {
			return
		}
		select {
		case <-again.C:
		case <-deadline.C:
			t.Fatalf("the daemon has grown: %+v after %d requests, %+v after %d", d.first, settleAfter, now, d.sent)
		}
	}
}

func (d *target) size(t *testing.T) size {
	t.Helper()
	var info struct{ NFd, NGoroutines int }
	d.call(t, "GET", "/info", nil, &info)
	s := size{descriptors: info.NFd, goroutines: info.NGoroutines}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.Pid))
	if err != nil {
		t.Fatalf("the daemon has exited: %v", err)
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "RssAnon:" {
			s.kilobytes, _ = strconv.Atoi(f[1])
		}
	}
	return s
}
