// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"testing"
	"time"
)

// Rows of the log.
const (
	rowLog       = "log of 100-byte lines (MB/s)"
	rowLogRead   = "`logs` of a log of %d MB (MB/s)"
	rowLogFollow = "`logs -f` of a running container's log of %d MB, to its last line (MB/s)"
)

// frameBytes is the length of a line in the API's answer, with its frame.
const frameBytes = lineBytes + 8

// writer is the configuration of a container that prints lines of 100 bytes in
// blocks of 64 KiB, and then runs a command.
func writer(first string, blocks int, last string) map[string]any {
	return map[string]any{
		"Image": imageRef,
		"Cmd":   []string{"sh", "-c", fmt.Sprintf("%s; i=0; while [ $i -lt %d ]; do dd if=/lines bs=64k 2>/dev/null; i=$((i+1)); done; %s", first, blocks, last)},
		// The container may wait for its input, so that it starts to write only
		// when the client is attached.
		"OpenStdin": true, "StdinOnce": true, "StopSignal": "SIGKILL",
	}
}

// measureLogs lets a container write lines, and reads them back.
func measureLogs(t *testing.T, s scale, table *table, subjects []*subject) {
	times := map[string]map[string][]time.Duration{}
	note := func(row, who string, took time.Duration) {
		if times[row] == nil {
			times[row] = map[string][]time.Duration{}
		}
		times[row][who] = append(times[row][who], took)
	}
	lines := s.blocks * blockFile / lineBytes
	megabytes := lines * lineBytes / 1e6
	for round := range s.few {
		if s.budget.done(round) {
			break
		}
		for _, x := range subjects {
			var c struct{ ID string }
			x.api.must(t, "POST", "/containers/create", writer("read go", s.blocks, "exit"), &c)
			x.api.must(t, "POST", "/containers/"+c.ID+"/start", nil, nil)
			if t.Failed() {
				return
			}
			begin := time.Now()
			if err := x.api.say(c.ID, "go\n"); err != nil {
				t.Fatal(err)
			}
			x.api.must(t, "POST", "/containers/"+c.ID+"/wait", nil, nil)
			note(rowLog, x.name(), time.Since(begin))
			var d struct{ LogPath string }
			x.api.must(t, "GET", "/containers/"+c.ID+"/json", nil, &d)
			text, err := os.ReadFile(d.LogPath)
			if err != nil {
				t.Fatal(err)
			}
			if got := bytes.Count(text, []byte{'\n'}); got != lines {
				t.Errorf("%s: the log has %d lines, but %d were written", x.name(), got, lines)
			}
			text = nil
			used := spent(x.programs())
			begin = time.Now()
			if got := x.api.readLog(t, c.ID, "", int64(lines)*frameBytes+1); got != int64(lines)*frameBytes {
				t.Errorf("%s: %d bytes of the log came, want %d", x.name(), got, lines*frameBytes)
			}
			note(fmt.Sprintf(rowLogRead, megabytes), x.name(), time.Since(begin))
			t.Logf("%s: logs took %v of processor time", x.name(), spent(x.programs())-used)
			x.api.must(t, "DELETE", "/containers/"+c.ID+"?force=1", nil, nil)
		}
	}
	measureFollow(t, s, subjects, func(who string, took time.Duration) { note(fmt.Sprintf(rowLogFollow, megabytes), who, took) })
	for row, by := range times {
		for who, list := range by {
			table.set(row, who, float64(lines*lineBytes)/1e6/median(list).Seconds())
		}
	}
}

// measureFollow follows the log of a container that has written and runs on.
func measureFollow(t *testing.T, s scale, subjects []*subject, note func(who string, took time.Duration)) {
	want := int64(s.blocks*blockFile/lineBytes) * frameBytes
	for _, x := range subjects {
		id := x.api.started(t, writer(":", s.blocks, "exec sleep 100000"))
		// The first client waits until all is written.
		for round := range s.few + 1 {
			used := spent(x.programs())
			begin := time.Now()
			if got := x.api.readLog(t, id, "&follow=1", want); got != want {
				t.Errorf("%s: %d bytes of the log came, want %d", x.name(), got, want)
			}
			if round > 0 {
				note(x.name(), time.Since(begin))
				t.Logf("%s: logs -f took %v of processor time", x.name(), spent(x.programs())-used)
			}
			if t.Failed() {
				return
			}
		}
		x.api.must(t, "DELETE", "/containers/"+id+"?force=1", nil, nil)
	}
}

// readLog reads a container's log to its end, or most bytes of it, and returns
// their number.
func (a *api) readLog(t testing.TB, id, query string, most int64) int64 {
	t.Helper()
	resp, err := a.http.Get("http://engine/v1.41/containers/" + id + "/logs?stdout=1" + query)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Error(resp.Status)
		return 0
	}
	n, err := io.Copy(io.Discard, bufio.NewReaderSize(io.LimitReader(resp.Body, most), 256<<10))
	if err != nil {
		t.Error(err)
	}
	return n
}
