// SPDX-License-Identifier: Apache-2.0

package sessions

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/internal/shim/proto"
	"holdfast/test/kit"
)

// record returns the state that the container's shim wrote last.
func record(d *kit.Daemon, name string) proto.State {
	return d.ShimState(d.Docker("inspect", "-f", "{{.Id}}", name))
}

// pss is the proportional set size of a process in kB.
func pss(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
			n, _ := strconv.Atoi(f[1])
			return n
		}
	}
	t.Fatal("no Pss")
	return 0
}

// attached opens a raw connection to the container's input and output, and
// waits until an echo has proved that the shim serves it. The container must
// answer "hi" with "hi".
func attached(t *testing.T, d *kit.Daemon, name string) (*http.Response, *net.UnixConn) {
	t.Helper()
	r, c := request(t, d, "POST", "/containers/"+name+"/attach?stdin=1&stdout=1&stderr=1&stream=1")
	if _, err := io.WriteString(c, "hi\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r.Body, make([]byte, 8+3)); err != nil {
		t.Fatal(err)
	}
	return r, c.(*net.UnixConn)
}

// script answers "hi", and runs the commands after another line.
func script(commands string) []string {
	return []string{"sh", "-c", "while read x && [ $x = hi ]; do echo hi; done; " + commands}
}

func TestReadersOfTheLogNeverMakeTheContainerWait(t *testing.T) {
	t.Parallel()
	const lines = 1_000_000
	d := live(t, nil)
	d.Docker(append([]string{"run", "-d", "-i", "--name", "box", image}, script("seq 1 "+strconv.Itoa(lines))...)...)
	follower, _ := request(t, d, "GET", "/containers/box/logs?follow=1&stdout=1&tail=0")
	in, conn := attached(t, d, "box")
	end := waits(t, d, "not-running")
	d.Kill9()
	if _, err := io.WriteString(conn, "go\n"); err != nil {
		t.Fatal(err)
	}
	numbered(t, unframed(t, in.Body), lines)
	// When the container ends, the follower has read nothing.
	if got, want := end.answer(), "{\"StatusCode\":0}\n"; got != want {
		t.Fatalf("answer %q, want %q", got, want)
	}
	numbered(t, strings.TrimPrefix(unframed(t, follower.Body), "hi\n"), lines)
}

// An attached client controls the container's output: the container waits,
// whether a daemon lives or not, until the client reads, detaches or
// disconnects.
func TestContainerWaitsForItsAttachedClient(t *testing.T) {
	t.Parallel()
	const lines = 1_000_000
	d := live(t, nil)
	for _, how := range []string{"reads", "goes"} {
		d.Docker(append([]string{"run", "-d", "-i", "--name", how, image}, script("seq 1 "+strconv.Itoa(lines))...)...)
	}
	in, conn := attached(t, d, "reads")
	_, leaves := attached(t, d, "goes")
	d.Kill9()
	for _, c := range []io.Writer{conn, leaves} {
		if _, err := io.WriteString(c, "go\n"); err != nil {
			t.Fatal(err)
		}
	}
	// Both clients block at the same place. Detaching one lets the container
	// continue.
	d.Start()
	for _, how := range []string{"reads", "goes"} {
		waitsForReader(t, d, how)
	}
	leaves.Close()
	if got := d.Docker("wait", "goes"); got != "0" {
		t.Errorf("without its client: %s", got)
	}
	if log := d.Docker("logs", "--tail", "1", "goes"); log != strconv.Itoa(lines) {
		t.Errorf("the log ends with %q", log)
	}
	if got := d.Docker("inspect", "-f", "{{.State.Running}}", "reads"); got != "true" {
		t.Error("the container did not wait for its client")
	}
	numbered(t, unframed(t, in.Body), lines)
	if got := d.Docker("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "reads"); got != "exited 0" {
		t.Errorf("state at the end of the output: %s", got)
	}
}

// waitsForReader waits until the container's process blocks in a write.
func waitsForReader(t *testing.T, d *kit.Daemon, name string) {
	t.Helper()
	pid := record(d, name).Pid
	for deadline := time.Now().Add(patience); ; {
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		for _, p := range append(strings.Fields(string(children)), strconv.Itoa(pid)) {
			if call, _ := os.ReadFile("/proc/" + p + "/wchan"); strings.HasSuffix(string(call), "pipe_write") {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not wait for its reader: %s", name, d.Docker("inspect", "-f", "{{.State.Status}}", name))
		}
		d.Docker("version") // this takes a moment
	}
}

// If rotation removes lines that a slow follower has not read, they are lost,
// as configured. The follower gets a message at that place, and continues.
func TestFollowerThatIsTooSlowForTheRotationIsTold(t *testing.T) {
	t.Parallel()
	const all = 400_000
	d := live(t, nil)
	d.Docker(append([]string{"run", "-d", "-i", "--name", "box", "--log-opt", "max-size=100k", "--log-opt", "max-file=2", image},
		script("seq 1 "+strconv.Itoa(all))...)...)
	follower, _ := request(t, d, "GET", "/containers/box/logs?follow=1&stdout=1&tail=0")
	in, conn := attached(t, d, "box")
	end := waits(t, d, "not-running")
	d.Kill9()
	if _, err := io.WriteString(conn, "go\n"); err != nil {
		t.Fatal(err)
	}
	numbered(t, unframed(t, in.Body), all)
	end.answer()
	got := strings.TrimPrefix(unframed(t, follower.Body), "hi\n")
	// The follower may fall behind several times: the message stands at every gap, and
	// nowhere else.
	const told = "holdfast: this client reads too slowly"
	n, gap, gaps := 0, false, 0
	for line := range strings.Lines(got) {
		if strings.HasPrefix(line, told) {
			if gap {
				t.Fatalf("two messages stand after line %d", n)
			}
			gap = true
			gaps++
			continue
		}
		at, err := strconv.Atoi(strings.TrimSuffix(line, "\n"))
		if err != nil || !gap && at != n+1 || gap && at <= n+1 {
			t.Fatalf("%q follows line %d, message between them: %v", line, n, gap)
		}
		n, gap = at, false
	}
	if gaps == 0 {
		t.Errorf("the follower got no message:\n%s", got[max(0, len(got)-2000):])
	}
	if n != all || gap {
		t.Errorf("the stream ends with line %d, want %d", n, all)
	}
}

func TestAHundredReadersOfOneContainerSeeTheSame(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	d.Docker(append([]string{"run", "-d", "-i", "--name", "box", image}, script("seq 1 20000; exec sleep 1000")...)...)
	own, conn := attached(t, d, "box")
	go io.Copy(io.Discard, own.Body) // an attached client that does not read makes the container wait
	pid := record(d, "box").ShimPid
	alone := pss(t, pid)
	var readers []*bufio.Reader
	for range 50 {
		r, _ := request(t, d, "GET", "/containers/box/logs?follow=1&stdout=1&tail=0")
		readers = append(readers, bufio.NewReader(r.Body))
		r, _ = request(t, d, "POST", "/containers/box/attach?stdout=1&stream=1")
		readers = append(readers, bufio.NewReader(r.Body))
	}
	// All readers are served when each has read a line. A frame may have several.
	greeted := make(chan error, len(readers))
	for _, r := range readers {
		go func() {
			_, err := frame(r)
			greeted <- err
		}()
	}
	deadline := time.After(patience)
	// A reader that is served only now gets the next line.
	next := time.NewTicker(10 * time.Millisecond)
	defer next.Stop()
	for seen := 0; seen < len(readers); {
		if _, err := io.WriteString(conn, "hi\n"); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-greeted:
			if err != nil {
				t.Fatal(err)
			}
			seen++
		case <-next.C:
		case <-deadline:
			t.Fatal("not all readers have read a line")
		}
	}
	many := pss(t, pid)
	d.Kill9()
	if _, err := io.WriteString(conn, "go\n"); err != nil {
		t.Fatal(err)
	}
	done := make(chan string, len(readers))
	for _, r := range readers {
		go func() { done <- upTo(r, "20000\n") }()
	}
	for range readers {
		select {
		case got := <-done:
			numbered(t, strings.ReplaceAll(got, "hi\n", ""), 20000)
		case <-time.After(patience):
			t.Fatal("not all readers have read all lines")
		}
	}
	t.Logf("the shim uses %d kB alone, %d with 100 readers, %d after they have read", alone, many, pss(t, pid))
}

// upTo reads frames until the text ends with the given end.
func upTo(r io.Reader, end string) string {
	var text []byte
	for !strings.HasSuffix(string(text[max(0, len(text)-len(end)-1):]), "\n"+end) {
		p, err := frame(r)
		if err != nil {
			return string(text)
		}
		text = append(text, p...)
	}
	return string(text)
}

// frame reads one frame.
func frame(r io.Reader) ([]byte, error) {
	head := make([]byte, 8)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	p := make([]byte, binary.BigEndian.Uint32(head[4:]))
	_, err := io.ReadFull(r, p)
	return p, err
}

func TestHalfClosedInputEndsInTheContainerWhileNoDaemonLives(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	d.Docker("create", "-i", "--name", "box", image, "sh", "-c", "cat; echo end")
	// As docker run -i does: attach before the start, so that the container has
	// no other input.
	r, c := request(t, d, "POST", "/containers/box/attach?stdin=1&stdout=1&stream=1")
	end := waits(t, d, "next-exit")
	d.Docker("start", "box")
	io.WriteString(c, "one\n")
	if _, err := io.ReadFull(r.Body, make([]byte, 8+4)); err != nil {
		t.Fatal(err)
	}
	d.Kill9()
	io.WriteString(c, "two\n")
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, want := unframed(t, r.Body), "two\nend\n"; got != want {
		t.Errorf("output after the end of the input: %q, want %q", got, want)
	}
	if got, want := end.answer(), "{\"StatusCode\":0}\n"; got != want {
		t.Errorf("answer %q, want %q", got, want)
	}
}

func TestDetachKeysLeaveTheContainerRunningWhileNoDaemonLives(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	x := inTerminal(t, d.DockerCommand(t.Context(), "run", "-it", "--name", "box", "--detach-keys", "ctrl-x,d", image, "sh"))
	x.Shows("# ")
	x.settled(t)
	d.Kill9()
	x.Type("echo st''ill\n")
	x.Shows("still")
	x.Type("\x18d")
	x.ExitCode()
	d.Start()
	if got := d.Docker("inspect", "-f", "{{.State.Status}} {{.RestartCount}}", "box"); got != "running 0" {
		t.Errorf("after the detach keys: %s", got)
	}
	y := inTerminal(t, d.DockerCommand(t.Context(), "attach", "box"))
	y.Type("echo ba''ck\n")
	y.Shows("back")
}

func TestExecGoesOnWhileNoDaemonLives(t *testing.T) {
	for name, client := range clients {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := live(t, nil)
			d.Docker("run", "-d", "--name", "box", image, "sleep", "1000")
			x := inTerminal(t, client(d, "exec", "-it", "box", "sh"))
			x.Shows("# ")
			x.settled(t)
			d.Kill9()
			x.Type("echo st''ill\n")
			x.Shows("still")
			// The client requests the exit code afterwards, so a daemon must
			// run.
			d.Start()
			x.Type("exit 5\n")
			if code := x.ExitCode(); code != 5 {
				t.Errorf("exit code %d, want 5:\n%s", code, x)
			}
		})
	}
}

func TestWaitAndFollowedLogOutliveSeveralDaemons(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	d.Docker(append([]string{"run", "-d", "-i", "--name", "box", image}, script("exit 4")...)...)
	r, _ := request(t, d, "GET", "/containers/box/logs?follow=1&stdout=1")
	_, conn := attached(t, d, "box")
	w := waits(t, d, "next-exit")
	d.Kill9()
	d.Start()
	d.Restart()
	io.WriteString(conn, "hi\ngo\n")
	if got, want := w.answer(), "{\"StatusCode\":4}\n"; got != want {
		t.Errorf("answer %q, want %q", got, want)
	}
	if got, want := unframed(t, r.Body), "hi\nhi\n"; got != want {
		t.Errorf("log %q, want %q", got, want)
	}
}
