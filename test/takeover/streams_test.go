// SPDX-License-Identifier: Apache-2.0

package takeover

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

// patience is the time limit for operations that should take milliseconds.
const patience = 30 * time.Second

// await receives a value, and fails the test at a timeout.
func await[T any](t *testing.T, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v, ok := <-ch:
		if !ok {
			t.Fatalf("%s: the stream has ended", what)
		}
		return v
	case <-time.After(patience):
		t.Fatalf("%s: nothing came", what)
	}
	panic("not reached")
}

// open opens a stream.
func open(t *testing.T, d *kit.Daemon, method, path string) io.Reader {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://h"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := d.HTTP().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s: %s: %s", path, resp.Status, b)
	}
	return resp.Body
}

// values decodes a sequence of JSON values.
func values[T any](r io.Reader) <-chan T {
	ch := make(chan T, 1000)
	go func() {
		defer close(ch)
		for dec := json.NewDecoder(r); ; {
			var v T
			if dec.Decode(&v) != nil {
				return
			}
			ch <- v
		}
	}()
	return ch
}

// lines reads a sequence of lines.
func lines(r io.Reader) <-chan string {
	ch := make(chan string, 100000)
	go func() {
		defer close(ch)
		for s := bufio.NewScanner(r); s.Scan(); {
			ch <- s.Text()
		}
	}()
	return ch
}

func TestStreamsGoOnOverTakeovers(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(t, nil))
	d.Holdfast("run", "-d", "--name", "counts", image, "sh", "-c",
		"trap 'exit 7' TERM; i=0; while :; do i=$((i+1)); echo line $i; usleep 2000; done")

	type event struct {
		Action string
		Actor  struct {
			ID         string
			Attributes map[string]string
		}
	}
	events := values[event](open(t, d, "GET", "/events?filters="+`{"type":["volume"]}`))
	ends := values[event](open(t, d, "GET", "/events?filters="+`{"event":["die"]}`))
	stats := values[struct {
		Name      string
		PidsStats struct{ Current int } `json:"pids_stats"`
	}](open(t, d, "GET", "/containers/counts/stats"))
	out, in := io.Pipe()
	body := open(t, d, "GET", "/containers/counts/logs?stdout=1&follow=1")
	go func() {
		_, err := stdcopy.StdCopy(in, io.Discard, body)
		in.CloseWithError(err)
	}()
	log := lines(out)
	type waited struct{ StatusCode int }
	wait := values[waited](open(t, d, "POST", "/containers/counts/wait?condition=next-exit"))
	await(t, "the first sample", stats)

	next := 1
	readLog := func(n int) {
		t.Helper()
		for range n {
			if got, want := await(t, "the log", log), fmt.Sprintf("line %d", next); got != want {
				t.Fatalf("log: %q, want %q", got, want)
			}
			next++
		}
	}
	readLog(10)
	for i := range 3 {
		d.Takeover()
		readLog(50)
		d.Holdfast("volume", "create", fmt.Sprintf("v%d", i))
		if e := await(t, "the event", events); e.Action != "create" || e.Actor.ID != fmt.Sprintf("v%d", i) {
			t.Fatalf("event %+v", e)
		}
		for len(stats) > 0 {
			<-stats
		}
		if s := await(t, "a sample", stats); s.PidsStats.Current < 1 {
			t.Fatalf("sample %+v", s)
		}
	}
	first := d.Predecessors()[0]
	select {
	case <-first.Exited:
		t.Error("the old daemon has exited although it serves streams")
	default:
	}
	select {
	case <-d.Predecessors()[1].Exited:
	case <-time.After(patience):
		t.Error("an old daemon without a stream does not exit")
	}
	d.Holdfast("stop", "counts")
	if w := await(t, "the end", wait); w.StatusCode != 7 {
		t.Errorf("wait says %d", w.StatusCode)
	}
	if e := await(t, "the event of the end", ends); e.Actor.Attributes["exitCode"] != "7" {
		t.Errorf("event %+v", e)
	}
	timeout := time.After(patience)
	for open := true; open; {
		select {
		case line, ok := <-log:
			if open = ok; ok && line != fmt.Sprintf("line %d", next) {
				t.Fatalf("log: %q, want line %d", line, next)
			}
			next++
		case <-timeout:
			t.Fatal("the followed log does not end with its container")
		}
	}
	select {
	case e, ok := <-ends:
		if ok {
			t.Errorf("received twice: %+v", e)
		}
	case <-stats:
	}
}

func TestOldDaemonEndsWithTheNewOneAndItsStreamsToo(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(d *kit.Daemon){"stopped": (*kit.Daemon).Term, "killed": (*kit.Daemon).Kill9} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := kit.Start(t, kit.Options{})
			d.Load(image, kit.Busybox(t, nil))
			d.Holdfast("create", "--name", "box", image, "true")
			stream := lines(open(t, d, "GET", "/containers/box/stats"))
			await(t, "the first sample", stream)
			d.Takeover()
			end(d)
			old := d.Predecessors()[0]
			select {
			case <-old.Exited:
			case <-time.After(patience):
				t.Fatal("the old daemon does not exit")
			}
			if old.Code != 0 {
				t.Errorf("it ended with %d", old.Code)
			}
			for range stream { // until it ends
			}
			d.Start()
		})
	}
}

func TestWaitForAContainerThatTheNewDaemonStartsIsAnswered(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(t, nil))
	type waited struct{ StatusCode int }
	type sample struct {
		PidsStats struct{ Current int } `json:"pids_stats"`
	}
	var ends, gone []<-chan waited
	for _, name := range []string{"short", "long"} {
		args := map[string]string{"short": "exit 3", "long": "trap 'exit 4' TERM; while :; do usleep 10000; done"}
		d.Holdfast("create", "--rm", "--name", name, image, "sh", "-c", args[name])
		ends = append(ends, values[waited](open(t, d, "POST", "/containers/"+name+"/wait?condition=next-exit")))
		gone = append(gone, values[waited](open(t, d, "POST", "/containers/"+name+"/wait?condition=removed")))
	}
	stats := values[sample](open(t, d, "GET", "/containers/long/stats"))
	d.Takeover()
	d.Takeover()
	d.Holdfast("start", "short", "long")
	if w := await(t, "the end of short", ends[0]); w.StatusCode != 3 {
		t.Errorf("wait says %d", w.StatusCode)
	}
	if w := await(t, "the removal of short", gone[0]); w.StatusCode != 3 {
		t.Errorf("wait says %d", w.StatusCode)
	}
	for await(t, "a sample of long", stats).PidsStats.Current == 0 {
	}
	d.Holdfast("stop", "long")
	if w := await(t, "the end of long", ends[1]); w.StatusCode != 4 {
		t.Errorf("wait says %d", w.StatusCode)
	}
	if w := await(t, "the removal of long", gone[1]); w.StatusCode != 4 {
		t.Errorf("wait says %d", w.StatusCode)
	}
	// The last messages about a removal arrive shortly before its end.
	kit.Eventually(t, "container long is removed", func() bool { return d.TryHoldfast("inspect", "long").Code != 0 })
	for _, old := range d.Predecessors() {
		select {
		case <-old.Exited:
		case <-time.After(patience):
			t.Error("an old daemon without a stream does not exit")
		}
	}
}

// A full disk keeps events from being journalled, and the old daemon serves clients that wait
// for what the event would report.
func TestWaitOfTheOldDaemonIsAnsweredThoughNoEventReportsTheRemoval(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(t, nil))
	id := d.Holdfast("create", "--name", "web", image, "true")
	type waited struct{ StatusCode int }
	gone := values[waited](open(t, d, "POST", "/containers/web/wait?condition=removed"))
	d.Takeover()
	// As if the new daemon had removed the container, except for the event.
	if err := os.RemoveAll(filepath.Join(d.DataRoot, "containers", id)); err != nil {
		t.Fatal(err)
	}
	await(t, "the removal", gone)
	d.TryHoldfast("rm", "web")
}

// The new daemon gives the container a new shim, which knows how it ends. The old daemon has no
// connection to that shim when the container ends.
func TestWaitOfTheOldDaemonHasTheCodeThoughTheShimWasKilled(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(t, nil))
	id := d.Holdfast("run", "-d", "--name", "web", image, "sleep", "1000")
	type waited struct{ StatusCode int }
	ends := values[waited](open(t, d, "POST", "/containers/web/wait"))
	d.Takeover()
	st := d.ShimState(id)
	// While it is stopped it starts no shim.
	d.Signal(unix.SIGSTOP)
	if err := unix.Kill(st.ShimPid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-time.After(300 * time.Millisecond)
	if err := unix.Kill(st.Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-time.After(300 * time.Millisecond)
	d.Signal(unix.SIGCONT)
	if w := await(t, "the end", ends); w.StatusCode != 137 {
		t.Errorf("wait says %d", w.StatusCode)
	}
	if code := d.Inspect("web").State.ExitCode; code != 137 {
		t.Errorf("the daemon says %d", code)
	}
}

// The client attaches and waits before it starts its container. Each of these
// requests may reach another daemon.
func TestRunSeesEverythingOfAContainerWhateverDaemonAnswers(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(t, nil))
	d.Holdfast("create", "--name", "cc", "-i", image, "sh", "-c", "read x; echo got $x; exit 9")
	// Each command has a time of its own: how long all of them take says nothing.
	limit := func() context.Context {
		ctx, release := context.WithTimeout(t.Context(), patience)
		t.Cleanup(release)
		return ctx
	}
	cmd := d.DockerCommand(limit(), "start", "-ai", "cc")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		// As many takeovers as the time permits.
		defer close(done)
		for ctx.Err() == nil {
			if err := d.TryTakeover(); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	cmd.Stdin = strings.NewReader("hello\n")
	out, err := cmd.CombinedOutput()
	if string(out) != "got hello\n" || cmd.ProcessState.ExitCode() != 9 {
		t.Errorf("%q %v", out, err)
	}
	for i := range 12 {
		var cmd *exec.Cmd
		if i%2 == 0 {
			cmd = d.DockerCommand(limit(), "run", "--rm", image, "sh", "-c", "echo out; exit 3")
		} else {
			cmd = d.HoldfastCommand(limit(), "run", "--name", fmt.Sprint("n", i), image, "sh", "-c", "echo out; exit 3")
		}
		if out, err := cmd.CombinedOutput(); string(out) != "out\n" || cmd.ProcessState.ExitCode() != 3 {
			t.Errorf("run %d: %q %v", i, out, err)
		}
	}
	cancel()
	<-done
}

func TestClientThatAttachedBeforeTheStartIsHandedOver(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(t, nil))
	d.Holdfast("create", "--name", "cc", image, "sh", "-c", "echo out; exit 9")
	c := &plain{d: d}
	status, _, err := c.do("GET", "/_ping")
	if err != nil || status != 200 {
		t.Fatal(status, err)
	}
	fmt.Fprintf(c.conn, "POST /containers/cc/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n")
	for line := ""; line != "\r\n"; {
		if line, err = c.r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	d.Takeover()
	d.Takeover()
	for _, old := range d.Predecessors() {
		<-old.Exited
	}
	d.Holdfast("start", "cc")
	c.conn.SetReadDeadline(time.Now().Add(patience))
	var b strings.Builder
	if _, err := stdcopy.StdCopy(&b, io.Discard, c.r); err != nil || b.String() != "out\n" {
		t.Errorf("%q %v", b.String(), err)
	}
	c.conn.Close()
}
