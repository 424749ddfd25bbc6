// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// Rows of single verbs.
const (
	rowVerbStop    = verbPrefix + "`stop`, until it is answered (ms)"
	rowVerbKill    = verbPrefix + "`kill`, until it is answered (ms)"
	rowVerbWait    = verbPrefix + "`kill` and `wait` (ms)"
	rowVerbDie     = verbPrefix + "`kill`, until the event `die` comes (ms)"
	rowVerbRemove  = verbPrefix + "`rm -f` of a running container (ms)"
	rowVerbRestart = verbPrefix + "`restart` (ms)"
	rowVerbExec    = verbPrefix + "`exec`: create, start, end, inspect (ms)"
	rowVerbExecs   = verbPrefix + "%d × `exec` at once (ms)"
	rowVerbBare    = verbPrefix + "bare `runc exec` of `true` in the same container (ms)"
	rowVerbOver    = verbPrefix + "`exec` over the bare `runc exec` (ms)"
	rowVerbInspect = verbPrefix + "`inspect` by %d clients at once, an answer (ms)"
	rowVerbPing    = verbPrefix + "`_ping` by %d clients at once, an answer (ms)"
	rowVerbSince   = verbPrefix + "`logs --since` behind the end of %d MB (ms)"
	rowVerbAttach  = verbPrefix + "standard input of an attached `run` (MB/s)"
	rowVerbStdin   = verbPrefix + "standard input of an `exec` (MB/s)"
	rowVerbCpFile  = verbPrefix + "`cp` of a file of %d MB into a container (ms)"
	rowVerbCpFiles = verbPrefix + "`cp` of %d files into a container (ms)"
	rowVerbVolume  = verbPrefix + "`volume create` and `volume rm` (ms)"
	rowVerbCycle   = verbPrefix + "`create`, `start` and `rm -f` by %d clients at once (containers/s)"
	rowVerbCreate  = verbPrefix + "`create` and `start` with %d running (ms)"
	rowVerbNear    = verbPrefix + "`create` and `start` with %d running, over the bare `runc run` of the same configuration (ms)"
)

// work is the amount of data that the verbs process.
type work struct {
	execs, inspects, files int
	megabytes              int // size of a copied file, of a stream, and of a log
}

func (s scale) work() work {
	if *full {
		return work{execs: 20, inspects: 50, files: 10_000, megabytes: 256}
	}
	return work{execs: 3, inspects: 5, files: 20, megabytes: 1}
}

// idler is the configuration of a container that does nothing until a signal
// ends it.
func idler() map[string]any {
	return map[string]any{"Image": imageRef, "Cmd": []string{"sleep", "100000"}, "StopSignal": "SIGKILL"}
}

// started creates a container and starts it.
func (a *api) started(t testing.TB, config map[string]any) (id string) {
	t.Helper()
	var c struct{ ID string }
	a.must(t, "POST", "/containers/create", config, &c)
	a.must(t, "POST", "/containers/"+c.ID+"/start", nil, nil)
	return c.ID
}

// measureVerbs measures one verb after the other. In every round the engines
// take turns.
func measureVerbs(t *testing.T, s scale, table *table, subjects []*subject) {
	w := s.work()
	times := map[string]map[string][]time.Duration{}
	note := func(row, who string, took time.Duration) {
		if times[row] == nil {
			times[row] = map[string][]time.Duration{}
		}
		times[row][who] = append(times[row][who], took)
	}
	type verb struct {
		row string
		do  func(a *api) time.Duration
		few bool // takes long, so it has fewer rounds
	}
	timed := func(do func()) time.Duration {
		begin := time.Now()
		do()
		return time.Since(begin)
	}
	// of measures an operation on a fresh container.
	of := func(do func(a *api, id string)) func(a *api) time.Duration {
		return func(a *api) time.Duration {
			id := a.started(t, idler())
			took := timed(func() { do(a, id) })
			_ = a.try("DELETE", "/containers/"+id+"?force=1", nil, nil) // some containers no longer exist
			return took
		}
	}
	kill := func(a *api, id string) { a.must(t, "POST", "/containers/"+id+"/kill", nil, nil) }
	archive := bigFile(t, w.megabytes<<20)
	small := manyFiles(t, w.files)
	standing := map[*api]string{}
	for _, x := range subjects {
		standing[x.api] = x.api.started(t, idler())
	}
	// crowd measures a request by many clients at once: the median of their answers.
	crowd := func(path func(a *api) string) func(a *api) time.Duration {
		return func(a *api) time.Duration {
			var mu sync.Mutex
			var all []time.Duration
			each(w.inspects, func(int) {
				for range 20 {
					took := timed(func() { a.must(t, "GET", path(a), nil, nil) })
					mu.Lock()
					all = append(all, took)
					mu.Unlock()
				}
			})
			return median(all)
		}
	}
	verbs := []verb{
		{rowVerbStop, of(func(a *api, id string) { a.must(t, "POST", "/containers/"+id+"/stop", nil, nil) }), false},
		{rowVerbKill, of(kill), false},
		{rowVerbWait, of(func(a *api, id string) {
			kill(a, id)
			a.must(t, "POST", "/containers/"+id+"/wait", nil, nil)
		}), false},
		{rowVerbDie, func(a *api) time.Duration {
			id := a.started(t, idler())
			events, err := a.http.Get("http://engine/v1.41/events?filters=" + url.QueryEscape(`{"event":["die"],"container":["`+id+`"]}`))
			if err != nil {
				t.Error(err)
				return 0
			}
			defer events.Body.Close()
			took := timed(func() {
				go a.try("POST", "/containers/"+id+"/kill", nil, nil)
				if _, err := bufio.NewReader(events.Body).ReadString('\n'); err != nil {
					t.Error(err)
				}
			})
			a.must(t, "DELETE", "/containers/"+id+"?force=1", nil, nil)
			return took
		}, false},
		{rowVerbRemove, of(func(a *api, id string) { a.must(t, "DELETE", "/containers/"+id+"?force=1", nil, nil) }), false},
		{rowVerbRestart, of(func(a *api, id string) { a.must(t, "POST", "/containers/"+id+"/restart", nil, nil) }), false},
		{rowVerbExec, func(a *api) time.Duration {
			return timed(func() { a.exec(t, standing[a], nil, "true") })
		}, false},
		{fmt.Sprintf(rowVerbExecs, w.execs), func(a *api) time.Duration {
			return timed(func() { each(w.execs, func(int) { a.exec(t, standing[a], nil, "true") }) })
		}, false},
		{fmt.Sprintf(rowVerbPing, w.inspects), crowd(func(*api) string { return "/_ping" }), false},
		{fmt.Sprintf(rowVerbInspect, w.inspects), crowd(func(a *api) string { return "/containers/" + standing[a] + "/json" }), false},
		{rowVerbVolume, func(a *api) time.Duration {
			return timed(func() {
				a.must(t, "POST", "/volumes/create", map[string]any{"Name": "benched"}, nil)
				a.must(t, "DELETE", "/volumes/benched", nil, nil)
			})
		}, false},
		{rowVerbAttach, func(a *api) time.Duration {
			id := a.started(t, map[string]any{"Image": imageRef, "Cmd": []string{"sh", "-c", "cat >/dev/null"}, "OpenStdin": true, "StdinOnce": true})
			defer a.must(t, "DELETE", "/containers/"+id+"?force=1", nil, nil)
			return timed(func() {
				a.feed(t, "/containers/"+id+"/attach?stream=1&stdin=1", nil, w.megabytes<<20)
				a.must(t, "POST", "/containers/"+id+"/wait", nil, nil)
			})
		}, true},
		{rowVerbStdin, func(a *api) time.Duration {
			return timed(func() { a.exec(t, standing[a], &w.megabytes, "sh", "-c", "cat >/dev/null") })
		}, true},
		{fmt.Sprintf(rowVerbCpFile, w.megabytes), func(a *api) time.Duration {
			f, err := os.Open(archive)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			return timed(func() { a.must(t, "PUT", "/containers/"+standing[a]+"/archive?path=/", f, nil) })
		}, true},
		{fmt.Sprintf(rowVerbCpFiles, w.files), func(a *api) time.Duration {
			return timed(func() {
				a.must(t, "PUT", "/containers/"+standing[a]+"/archive?path=/", bytes.NewReader(small), nil)
			})
		}, true},
	}
	// The first round of each engine warms caches and is not counted.
	for round := range s.rounds + 1 {
		if s.budget.done(max(0, round-1)) {
			break
		}
		if round == 1 {
			clear(times)
		}
		note(rowVerbBare, "Holdfast", timed(func() { subjects[0].engine.(*holdfast).bareExec(standing[subjects[0].api], "true") }))
		for _, v := range verbs {
			if v.few && round > s.few {
				continue
			}
			for _, x := range subjects {
				note(v.row, x.name(), v.do(x.api))
			}
			if t.Failed() {
				return
			}
		}
	}
	measureSince(t, s, w, subjects, note)
	measureCycle(t, s, w, table, subjects)
	for _, x := range subjects {
		x.api.must(t, "DELETE", "/containers/"+standing[x.api]+"?force=1", nil, nil)
	}
	for row, by := range times {
		for who, list := range by {
			if strings.HasSuffix(row, "(MB/s)") {
				table.set(row, who, float64(w.megabytes)*1.048576/median(list).Seconds())
			} else {
				table.set(row, who, ms(median(list)))
			}
		}
	}
	table.set(rowVerbOver, "Holdfast", table.get(rowVerbExec, "Holdfast")-table.get(rowVerbBare, "Holdfast"))
}

// measureSince requests the lines after the current time from a long log.
func measureSince(t *testing.T, s scale, w work, subjects []*subject, note func(row, who string, took time.Duration)) {
	type long struct {
		x  *subject
		id string
	}
	var all []long
	blocks := max(1, w.megabytes<<20*2/5/blockFile)
	for _, x := range subjects {
		id := x.api.started(t, map[string]any{"Image": imageRef,
			"Cmd": []string{"sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do cat /lines; i=$((i+1)); done", blocks)}})
		x.api.must(t, "POST", "/containers/"+id+"/wait", nil, nil)
		all = append(all, long{x, id})
	}
	row := fmt.Sprintf(rowVerbSince, blocks*blockFile>>20)
	for round := range s.few + 1 {
		for _, l := range all {
			begin := time.Now()
			l.x.api.must(t, "GET", fmt.Sprintf("/containers/%s/logs?stdout=1&since=%d", l.id, time.Now().Unix()+1000), nil, nil)
			if round > 0 {
				note(row, l.x.name(), time.Since(begin))
			}
		}
	}
	for _, l := range all {
		l.x.api.must(t, "DELETE", "/containers/"+l.id, nil, nil)
	}
}

// measureCycle lets clients create, start and remove containers at once.
func measureCycle(t *testing.T, s scale, w work, table *table, subjects []*subject) {
	const rounds = 4
	rates := map[string][]float64{}
	for round := range s.few {
		if s.budget.done(round) {
			break
		}
		for _, x := range subjects {
			begin := time.Now()
			each(w.inspects, func(int) {
				for range rounds {
					id := x.api.started(t, idler())
					x.api.must(t, "DELETE", "/containers/"+id+"?force=1", nil, nil)
				}
			})
			rates[x.name()] = append(rates[x.name()], float64(w.inspects*rounds)/time.Since(begin).Seconds())
		}
	}
	for who, list := range rates {
		table.set(fmt.Sprintf(rowVerbCycle, w.inspects), who, median(list))
	}
}

// measureCreate measures the start of one more container beside n others, and what of it
// is not the runtime's.
func measureCreate(t *testing.T, s scale, table *table, x *subject, n int) {
	var times, bare []time.Duration
	h, ours := x.engine.(*holdfast)
	for round := range s.rounds/2 + 1 {
		begin := time.Now()
		id := x.api.started(t, idler())
		took := time.Since(begin)
		if round > 0 {
			times = append(times, took)
		}
		if ours {
			if took := h.bareRun(id); round > 0 {
				bare = append(bare, took)
			}
		}
		x.api.must(t, "DELETE", "/containers/"+id+"?force=1", nil, nil)
	}
	table.set(fmt.Sprintf(rowVerbCreate, n), x.name(), ms(median(times)))
	if ours {
		table.set(fmt.Sprintf(rowVerbNear, n), x.name(), ms(median(times)-median(bare)))
	}
}

// exec runs a command in a container to its end. If megabytes is set, that many
// megabytes are written to the command's standard input.
func (a *api) exec(t testing.TB, id string, megabytes *int, command ...string) {
	t.Helper()
	var x struct{ ID string }
	a.must(t, "POST", "/containers/"+id+"/exec", map[string]any{"AttachStdin": megabytes != nil, "AttachStdout": true, "AttachStderr": true, "Cmd": command}, &x)
	n := 0
	if megabytes != nil {
		n = *megabytes << 20
	}
	a.feed(t, "/exec/"+x.ID+"/start", map[string]any{"Detach": false, "Tty": false}, n)
	var state struct {
		ExitCode *int
		Running  bool
	}
	a.must(t, "GET", "/exec/"+x.ID+"/json", nil, &state)
	if state.Running || state.ExitCode == nil || *state.ExitCode != 0 {
		t.Errorf("exec of %q ended with %+v", command, state)
	}
}

// feed opens a stream, writes n bytes to it, and reads it to its end.
func (a *api) feed(t testing.TB, path string, body any, n int) {
	t.Helper()
	conn, err := net.Dial("unix", a.socket)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	var text []byte
	if body != nil {
		if text, err = json.Marshal(body); err != nil {
			t.Error(err)
			return
		}
	}
	fmt.Fprintf(conn, "POST /v1.41%s HTTP/1.1\r\nHost: engine\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n%s", path, len(text), text)
	r := bufio.NewReader(conn)
	head, err := http.ReadResponse(r, nil)
	if err != nil || head.StatusCode != http.StatusSwitchingProtocols {
		t.Errorf("%s: %v, %v", path, err, head)
		return
	}
	block := make([]byte, 64<<10)
	for left := n; left > 0; left -= len(block) {
		if _, err := conn.Write(block[:min(left, len(block))]); err != nil {
			t.Error(err)
			return
		}
	}
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		t.Error(err)
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Error(err)
	}
}

// bigFile is an archive with one file.
func bigFile(t testing.TB, size int) (path string) {
	t.Helper()
	f, err := os.Create(t.TempDir() + "/big.tar")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	err = w.WriteHeader(&tar.Header{Name: "big", Mode: 0o644, Size: int64(size)})
	block := make([]byte, 1<<20)
	for i := 0; err == nil && i < size; i += len(block) {
		block[0] = byte(i >> 20)
		_, err = w.Write(block)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// manyFiles is an archive with n files of a kilobyte each.
func manyFiles(t testing.TB, n int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	body := make([]byte, 1<<10)
	for i := range n {
		err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("many/%d/%d", i/100, i), Mode: 0o644, Size: int64(len(body))})
		if err == nil {
			_, err = w.Write(body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
