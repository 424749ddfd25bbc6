// SPDX-License-Identifier: Apache-2.0

package security

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

// apiWait is the time limit for an answer on a busy machine.
const apiWait = 60 * time.Second

func dialAPI(t *testing.T, d *kit.Daemon) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(apiWait)); err != nil {
		t.Fatal(err)
	}
	return c
}

// answerOn reads the answer to a request that was written directly to a
// connection.
func answerOn(t *testing.T, c net.Conn) (int, string) {
	t.Helper()
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// lists lists the containers once and returns the time that it took.
func lists(t *testing.T, d *kit.Daemon) time.Duration {
	t.Helper()
	began := time.Now()
	c := dialAPI(t, d)
	defer c.Close()
	if _, err := io.WriteString(c, "GET /containers/json?all=1 HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if code, body := answerOn(t, c); code != http.StatusOK {
		t.Fatalf("a list is answered with %d %s", code, body)
	}
	return time.Since(began)
}

func median(t *testing.T, n int, measure func() time.Duration) time.Duration {
	t.Helper()
	all := make([]time.Duration, n)
	for i := range all {
		all[i] = measure()
	}
	slices.Sort(all)
	return all[n/2]
}

// memory is the private memory of a process, in kilobytes.
func memory(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "RssAnon:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no RssAnon")
	return 0
}

func descriptors(t *testing.T, pid int) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// eventually polls until a condition holds.
func eventually(t *testing.T, what func() error) {
	t.Helper()
	deadline := time.NewTimer(apiWait)
	defer deadline.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := what()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatal(err)
		}
	}
}

// watchers opens n streams and waits until each has its header.
func watchers(t *testing.T, d *kit.Daemon, n int, request string) []net.Conn {
	t.Helper()
	all := make([]net.Conn, n)
	for i := range all {
		all[i] = dialAPI(t, d)
		if _, err := io.WriteString(all[i], request); err != nil {
			t.Fatal(err)
		}
	}
	head := make([]byte, 12)
	for _, c := range all {
		if _, err := io.ReadFull(c, head); err != nil || !bytes.HasPrefix(head, []byte("HTTP/1.1 200")) {
			t.Fatalf("%v, %q", err, head)
		}
	}
	return all
}

func TestThousandsOfWatchersCostLittleAndNothingAfterwards(t *testing.T) {
	const n = 2000
	d := live(t)
	d.Docker("create", "--name", "box", image)
	alone := median(t, 15, func() time.Duration { return lists(t, d) })
	filesAlone := descriptors(t, d.Pid())
	before := memory(t, d.Pid())
	all := watchers(t, d, n, "GET /events HTTP/1.1\r\nHost: d\r\n\r\n")
	during := memory(t, d.Pid())
	if files := descriptors(t, d.Pid()) - filesAlone; files > n+50 {
		t.Errorf("%d watchers take %d descriptors", n, files)
	}
	watched := median(t, 15, func() time.Duration { return lists(t, d) })
	// Each stream receives the event, and a list is answered meanwhile.
	d.Docker("rename", "box", "box2")
	busy := lists(t, d)
	got := make([]byte, 64<<10)
	for i, c := range all {
		var text []byte
		for !bytes.Contains(text, []byte(`"rename"`)) {
			m, err := c.Read(got)
			if err != nil {
				t.Fatalf("watcher %d got %q: %v", i, text, err)
			}
			text = append(text, got[:m]...)
		}
	}
	for _, c := range all {
		c.Close()
	}
	t.Logf("list: %s alone, %s beside %d watchers, %s right after an event; memory: %d kB, then %d kB", alone, watched, n, busy, before, during)
	// Other load of the machine counts as well, so the limit is loose. The
	// fault took seconds.
	if limit := 10*alone + 200*time.Millisecond; watched > limit {
		t.Errorf("a list takes %s beside watchers and %s alone", watched, alone)
	}
	if per := (during - before) / n; per > 60 {
		t.Errorf("a watcher takes %d kB", per)
	}
	eventually(t, func() error {
		if now := memory(t, d.Pid()); now > before+24<<10 {
			return fmt.Errorf("memory was %d kB before the watchers, %d with them, and is %d after", before, during, now)
		}
		if files := descriptors(t, d.Pid()); files > filesAlone+20 {
			return fmt.Errorf("%d descriptors before the watchers, %d after", filesAlone, files)
		}
		return nil
	})
}

func TestSlowAndSilentClientsHoldNobodyUp(t *testing.T) {
	const n = 300
	d := live(t)
	d.Docker("run", "-d", "--name", "talks", image, "sh", "-c", "yes | head -c 3000000; exec sleep 1000")
	d.Docker("run", "-d", "--name", "keeps", image, "sleep", "1000")
	// Answers that are larger than a socket's buffer.
	label := strings.Repeat("x", 60<<10)
	for i := range 6 {
		body := fmt.Sprintf(`{"Image":%q,"Labels":{"l":%q}}`, image, label)
		res, err := d.HTTP().Post(fmt.Sprintf("http://d/containers/create?name=big%d", i), "application/json", strings.NewReader(body))
		if err != nil || res.StatusCode != http.StatusCreated {
			t.Fatal(err, res)
		}
		res.Body.Close()
	}
	for _, request := range []string{
		"", // sends no byte
		"GET /containers/js",
		"GET /containers/json HTTP/1.1\r\nHost: d\r\nX-Slow: ",
		"GET /containers/json?all=1 HTTP/1.1\r\nHost: d\r\n\r\n", // does not read the answer
		strings.Repeat("GET /containers/json?all=1 HTTP/1.1\r\nHost: d\r\n\r\n", 20),
		"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{\"Image\":",
		"POST /containers/talks/wait HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n",
		"GET /containers/talks/logs?stdout=1&follow=1 HTTP/1.1\r\nHost: d\r\n\r\n",
		"GET /containers/talks/logs?stdout=1 HTTP/1.1\r\nHost: d\r\n\r\n",
		"POST /containers/talks/attach?stream=1&stdout=1&logs=1 HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n",
		"GET /containers/talks/stats HTTP/1.1\r\nHost: d\r\n\r\n",
		// These requests keep the files of their container mounted, for two
		// minutes at most.
		"GET /containers/keeps/archive?path=/bin HTTP/1.1\r\nHost: d\r\n\r\n",
		"GET /images/busybox:latest/get HTTP/1.1\r\nHost: d\r\n\r\n",
		"PUT /containers/keeps/archive?path=/tmp HTTP/1.1\r\nHost: d\r\nContent-Length: 100000\r\n\r\nabc",
	} {
		count := n / 10
		if request == "" || strings.HasPrefix(request, "GET /containers/js") {
			count = n
		}
		for range count {
			if _, err := io.WriteString(dialAPI(t, d), request); err != nil {
				t.Fatal(err)
			}
		}
	}
	took := median(t, 9, func() time.Duration { return lists(t, d) })
	if took > 5*time.Second {
		t.Errorf("a list takes %s beside slow clients", took)
	}
	d.Docker("run", "--rm", image, "true")
	d.Docker("exec", "talks", "true")
	d.Docker("rm", "-f", "talks")
}

func TestConnectionsNeverTakeTheLastDescriptors(t *testing.T) {
	const files = 400 // limit of the daemon
	script := t.TempDir() + "/holdfastd"
	text := fmt.Sprintf("#!/bin/sh\nulimit -n %d && exec %s \"$@\"\n", files, kit.Binary(t, "holdfastd"))
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	d := kit.Start(t, kit.Options{LiveRestore: true, Binary: script, Shim: kit.Binary(t, "holdfast-shim")})
	d.Load(image, kit.Busybox(t, nil))
	var limit unix.Rlimit
	if err := unix.Prlimit(d.Pid(), unix.RLIMIT_NOFILE, nil, &limit); err != nil || limit.Cur != files {
		t.Fatalf("the daemon may have %d descriptors: %v", limit.Cur, err)
	}
	// Each connection sends half a header, and there are more of them than
	// descriptors. The oldest connections are closed.
	for range 2 * files {
		dialAPI(t, d).Write([]byte("GET /containers/json HTTP/1.1\r\n"))
	}
	lists(t, d)
	d.Docker("run", "-d", "--name", "box", image, "sleep", "1000")
	// All connections are in use, so none is closed. Further clients get an
	// error.
	told := 0
	for range 2 * files {
		c := dialAPI(t, d)
		if _, err := io.WriteString(c, "GET /events HTTP/1.1\r\nHost: d\r\n\r\n"); err != nil {
			continue // the connection was closed
		}
		head := make([]byte, 12)
		if _, err := io.ReadFull(c, head); err != nil {
			continue
		}
		switch string(head) {
		case "HTTP/1.1 200":
		case "HTTP/1.1 503":
			told++
		default:
			t.Fatalf("%q", head)
		}
	}
	if told == 0 {
		t.Error("no client got the error that there are too many clients")
	}
	// The event server holds the first of these connections.
	servers := kit.EventServers(t, d)
	if len(servers) != 1 {
		t.Errorf("processes %v serve events, want one", servers)
	}
	for _, pid := range append(servers, d.Pid()) {
		if open := descriptors(t, pid); open > files-20 {
			t.Errorf("%d of %d descriptors of process %d are in use", open, files, pid)
		}
	}
}

func TestRequestsThatAreTooLargeAreRefused(t *testing.T) {
	d := live(t)
	big := bytes.Repeat([]byte(" "), 33<<20)
	for _, c := range []struct {
		name, method, path, kind string
		body                     []byte
		header                   int
		want                     int
	}{
		{"a body of JSON", "POST", "/containers/create", "application/json", append([]byte(`{"Image":"`), append(big, `"}`...)...), 0, http.StatusRequestEntityTooLarge},
		{"deep JSON", "POST", "/containers/create", "application/json", bytes.Repeat([]byte(`{"HostConfig":`), 200000), 0, http.StatusBadRequest},
		{"a large body that is no JSON", "POST", "/networks/create", "text/plain", big[:4<<20], 0, http.StatusBadRequest},
		{"a body for nobody", "POST", "/containers/none/stop", "", big[:4<<20], 0, http.StatusNotFound},
		{"a large head", "GET", "/containers/json", "", nil, 1 << 20, http.StatusRequestHeaderFieldsTooLarge},
		{"a body with a read", "GET", "/containers/json", "application/json", []byte(`{"a":1}`), 0, http.StatusOK},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), apiWait)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, c.method, "http://d"+c.path, bytes.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			if c.kind != "" {
				req.Header.Set("Content-Type", c.kind)
			}
			if c.header > 0 {
				req.Header.Set("X-Large", strings.Repeat("a", c.header))
			}
			res, err := d.HTTP().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if text, _ := io.ReadAll(res.Body); res.StatusCode != c.want {
				t.Errorf("answered with %d %.300s, want %d", res.StatusCode, text, c.want)
			}
		})
	}
}

func TestValuesThatCantBeAreTheClientsFault(t *testing.T) {
	d := live(t)
	d.Docker("run", "-d", "--name", "box", image, "sleep", "1000")
	long := strings.Repeat("a", 300)
	for _, c := range []struct{ method, path, body string }{
		{"GET", "/containers/box/archive?path=/%00", ""},
		{"HEAD", "/containers/box/archive?path=a%00b", ""},
		{"PUT", "/containers/box/archive?path=/%00", "x"},
		{"GET", "/containers/box/archive?path=/" + long, ""},
		{"GET", "/containers/box/archive?path=" + strings.Repeat("/aaaaaaaa", 1000), ""},
		{"GET", "/containers/box/archive?path=/etc/passwd/x", ""},
		{"GET", "/containers/box/archive", ""},
		{"GET", "/containers/%00/json", ""},
		{"GET", "/containers/" + long + "/json", ""},
		{"GET", "/volumes/%00", ""},
		{"GET", "/volumes/" + long, ""},
		{"GET", "/volumes/..%2f..%2fx", ""},
		{"DELETE", "/volumes/" + long, ""},
		{"POST", "/volumes/create", `{"Name":"a\u0000"}`},
		{"POST", "/volumes/create", `{"Name":"` + long + `"}`},
		{"POST", "/volumes/create", `{"Name":"../x"}`},
		{"POST", "/volumes/create", `{"Name":1}`},
		{"POST", "/networks/create", `{"Name":"a\nb"}`},
		{"POST", "/networks/create", `{"Name":""}`},
		{"POST", "/containers/create?name=a%0ab", `{"Image":"busybox:latest"}`},
		{"POST", "/containers/create", `{"Image":"busybox:latest","Env":["A=\u0000"]}`},
		{"POST", "/containers/create", `{"Image":"busybox:latest","WorkingDir":"relative"}`},
		{"POST", "/containers/create", `{"Image":"busybox:latest","HostConfig":{"Binds":["/\u0000:/x"]}}`},
		{"POST", "/containers/create", `{"Image":"busybox:latest","HostConfig":{"Memory":-5}}`},
		{"POST", "/containers/create", `{"Image":"busybox:latest","HostConfig":{"Memory":99999999999999999999}}`},
		{"POST", "/containers/create", `{"Image":"busybox:latest","Labels":` + strings.Repeat(`{"a":`, 20000) + `1`},
		{"POST", "/containers/box/kill?signal=%00", ""},
		{"POST", "/containers/box/kill?signal=-1", ""},
		{"POST", "/containers/box/resize?h=-1&w=99999999", ""},
		{"POST", "/containers/box/exec", `{"Cmd":["a\u0000"]}`},
		{"GET", "/containers/box/logs?stdout=1&tail=x", ""},
		{"GET", "/containers/box/top?ps_args=%00", ""},
		{"GET", "/events?since=%00&until=1", ""},
		{"GET", "/events?since=99999999999999999999&until=1", ""},
		{"GET", "/images/json?filters=%7B%22until%22%3A%5B%22x%22%5D%7D", ""},
		{"GET", "/images/%00/json", ""},
		{"GET", "/images/" + long + "/json", ""},
		{"POST", "/images/busybox:latest/tag?repo=%00", ""},
		{"POST", "/images/create?fromImage=%ff", ""},
		{"GET", "/containers/json?filters=" + strings.Repeat("%5B", 20000), ""},
		{"GET", "/containers/json?limit=1e9", ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, "http://d"+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(c.body, "{") {
			req.Header.Set("Content-Type", "application/json")
		}
		res, err := d.HTTP().Do(req)
		if err != nil {
			t.Fatalf("%s %.200s: %v", c.method, c.path, err)
		}
		text, _ := io.ReadAll(res.Body)
		res.Body.Close()
		var e struct{ Message string }
		_ = json.Unmarshal(text, &e)
		if res.StatusCode < 400 || res.StatusCode >= 500 || c.method != "HEAD" && e.Message == "" {
			t.Errorf("%s %.200s %.200s: %d %.300s, want what was wrong with it", c.method, c.path, c.body, res.StatusCode, text)
		}
	}
}

// onTCP starts a daemon that also serves plain TCP, and returns its port.
func onTCP(t *testing.T, config map[string]any) (*kit.Daemon, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	d := kit.New(t, kit.Options{LiveRestore: true, Config: config})
	d.SetFlags("-H", "unix://"+d.Socket, "-H", "tcp://127.0.0.1:"+port)
	d.Start()
	return d, port
}

// asks sends a request to 127.0.0.1 with another host name and more headers.
func asks(t *testing.T, method, url, host string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

func TestWebPagesDoNotReachTheAPI(t *testing.T) {
	d, port := onTCP(t, nil)
	d.Load(image, kit.Busybox(t, nil))
	d.Docker("create", "--name", "precious", image)
	api := "http://127.0.0.1:" + port
	for _, c := range []struct {
		name, method, path, host string
		header                   []string
		want                     int
	}{
		{"a form of another site", "POST", "/containers/prune", "127.0.0.1:" + port, []string{"Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"}, 403},
		{"the same without Sec-Fetch-Site", "POST", "/containers/prune", "127.0.0.1:" + port, []string{"Origin", "https://evil.example"}, 403},
		{"a page that hides its origin", "POST", "/containers/prune", "127.0.0.1:" + port, []string{"Origin", "null"}, 403},
		{"a container's page", "POST", "/containers/prune", "127.0.0.1:" + port, []string{"Origin", "http://127.0.0.1:8080"}, 403},
		{"a name made to lead here", "POST", "/containers/prune", "evil.example:" + port, []string{"Origin", "http://evil.example:" + port, "Sec-Fetch-Site", "same-origin"}, 403},
		{"a read under that name", "GET", "/containers/json", "evil.example:" + port, nil, 403},
		{"a websocket", "GET", "/containers/precious/attach/ws?stream=1", "127.0.0.1:" + port, []string{"Origin", "https://evil.example", "Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="}, 403},
		{"a question for CORS", "OPTIONS", "/containers/json", "127.0.0.1:" + port, []string{"Origin", "https://evil.example", "Access-Control-Request-Method", "POST"}, 403},
		{"a client", "GET", "/containers/json", "127.0.0.1:" + port, nil, 200},
		{"a client by localhost", "GET", "/containers/json", "localhost:" + port, nil, 200},
	} {
		res, text := asks(t, c.method, api+c.path, c.host, c.header...)
		if res.StatusCode != c.want {
			t.Errorf("%s: %d %s, want %d", c.name, res.StatusCode, text, c.want)
		}
		if c.want == 403 && !strings.Contains(text, "api-allowed-") {
			t.Errorf("%s: the error does not say what to do: %s", c.name, text)
		}
		for name := range res.Header {
			if strings.HasPrefix(name, "Access-Control-") {
				t.Errorf("%s: CORS is offered by %s", c.name, name)
			}
		}
	}
	d.Docker("inspect", "precious")
	// Docker's client still works, by an address and by the host's own name.
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	d.Docker("-H", "tcp://127.0.0.1:"+port, "ps")
	d.Docker("-H", "tcp://localhost:"+port, "ps")
	if res, text := asks(t, "GET", api+"/info", host+":"+port); res.StatusCode != 200 {
		t.Errorf("under the host's name: %d %s", res.StatusCode, text)
	}
	// Names and origins that are added later are valid after a reload.
	d.WriteConfig(map[string]any{"live-restore": true, "api-allowed-hosts": []string{"docker.example"}, "api-allowed-origins": []string{"https://ui.example"}})
	d.Hup()
	if res, text := asks(t, "POST", api+"/networks/prune", "docker.example:"+port, "Origin", "https://ui.example", "Sec-Fetch-Site", "cross-site"); res.StatusCode != 200 {
		t.Errorf("what is allowed is refused: %d %s", res.StatusCode, text)
	}
	if res, text := asks(t, "POST", api+"/networks/prune", "docker.example:"+port, "Origin", "https://evil.example"); res.StatusCode != 403 {
		t.Errorf("another page is answered with %d %s", res.StatusCode, text)
	}
}

func TestServingTCPWithoutTLSIsSaidLoudly(t *testing.T) {
	d, port := onTCP(t, nil)
	if log := d.Log(); !strings.Contains(log, "level=warn") || !strings.Contains(log, "without TLS") || !strings.Contains(log, port) {
		t.Errorf("the log does not warn: %s", log)
	}
	var info struct{ Warnings []string }
	res, err := d.HTTP().Get("http://d/info")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&info); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(info.Warnings, func(w string) bool {
		return strings.Contains(w, "API is accessible on http://127.0.0.1:"+port+" without encryption")
	}) {
		t.Errorf("info does not warn: %q", info.Warnings)
	}
	if r := d.TryDocker("info"); !strings.Contains(r.Stdout+r.Stderr, "without encryption") {
		t.Errorf("docker info does not show it:\n%s%s", r.Stdout, r.Stderr)
	}
}

// Every user of the host could write to the API's socket, and so become root.
// Here the socket belongs to its owner and group from the moment that it has
// its name, also with a permissive umask of the daemon.
func TestCVE_2014_3499_SocketIsNeverForEverybody(t *testing.T) {
	d := kit.New(t, kit.Options{})
	if err := os.MkdirAll(d.ExecRoot, 0o711); err != nil {
		t.Fatal(err)
	}
	in, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	watch := os.NewFile(uintptr(in), "inotify")
	defer watch.Close()
	if _, err := unix.InotifyAddWatch(in, d.ExecRoot, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ATTRIB); err != nil {
		t.Fatal(err)
	}
	var seen sync.WaitGroup
	seen.Go(func() {
		b := make([]byte, 4096)
		for {
			if _, err := watch.Read(b); err != nil {
				return
			}
			list, err := filepath.Glob(d.Socket + "*")
			if err != nil {
				t.Error(err)
				return
			}
			for _, path := range list {
				var st unix.Stat_t
				if err := unix.Lstat(path, &st); err != nil {
					if !errors.Is(err, unix.ENOENT) {
						t.Error(err)
					}
					continue
				}
				// Connecting requires write access.
				if st.Mode&0o002 != 0 {
					t.Errorf("%s has mode %o", path, st.Mode&0o777)
				}
			}
		}
	})
	old := unix.Umask(0)
	d.Start()
	unix.Umask(old)
	watch.Close()
	seen.Wait()
	var st unix.Stat_t
	if err := unix.Stat(d.Socket, &st); err != nil {
		t.Fatal(err)
	}
	if st.Mode&0o777 != 0o660 || st.Uid != 0 {
		t.Errorf("the socket has mode %o and belongs to %d", st.Mode&0o777, st.Uid)
	}
}

// A container whose name was the ID of another one was found in its place. So a
// user who could create containers could receive commands for the other
// container. Here an ID is looked up before any name.
func TestCVE_2014_5278_NameNeverHidesAnID(t *testing.T) {
	d := live(t)
	victim := d.Docker("create", "--name", "victim", image)
	for _, name := range []string{victim, victim[:12]} {
		r := d.TryDocker("create", "--name", name, image)
		if got := d.Docker("inspect", "-f", "{{.Id}}", victim); got != victim {
			t.Errorf("the whole ID finds %s after a container was named %s (%s)", got, name, r.Stderr)
		}
	}
	d.Docker("rm", victim)
	if r := d.TryDocker("inspect", "victim"); r.Code == 0 {
		t.Error("another container was removed in its place")
	}
}
