package sessions

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"encoding/json"

	"holdfast/internal/shim/proto"
	"holdfast/test/kit"
)

// record is what the container's shim wrote last.
func record(t *testing.T, d *kit.Daemon, name string) (st proto.State) {
	t.Helper()
	id := d.Docker("inspect", "-f", "{{.Id}}", name)
	b, err := os.ReadFile(filepath.Join(d.ExecRoot, "shim", id, proto.StateFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &st); err != nil {
		t.Fatal(err)
	}
	return st
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

// attached gives the container's input and output over a raw connection, after
// an echo has shown that the shim has it. The container must answer hi by hi.
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

// script answers hi, then runs the commands once it reads another word.
func script(commands string) []string {
	return []string{"sh", "-c", "while read x && [ $x = hi ]; do echo hi; done; " + commands}
}

func TestSlowReadersNeverMakeTheContainerWait(t *testing.T) {
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
	// Nobody has read a byte when the container has ended.
	if got, want := end.answer(), "{\"StatusCode\":0}\n"; got != want {
		t.Fatalf("answer %q, want %q", got, want)
	}
	numbered(t, strings.TrimPrefix(unframed(t, follower.Body), "hi\n"), lines)
	numbered(t, unframed(t, in.Body), lines)
}

func TestFollowerThatIsTooSlowForTheRotationIsTold(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	d.Docker(append([]string{"run", "-d", "-i", "--name", "box", "--log-opt", "max-size=100k", "--log-opt", "max-file=2", image},
		script("seq 1 400000")...)...)
	follower, _ := request(t, d, "GET", "/containers/box/logs?follow=1&stdout=1&tail=0")
	_, conn := attached(t, d, "box")
	end := waits(t, d, "not-running")
	d.Kill9()
	if _, err := io.WriteString(conn, "go\n"); err != nil {
		t.Fatal(err)
	}
	end.answer()
	got := strings.TrimPrefix(unframed(t, follower.Body), "hi\n")
	const told = "holdfast: this client reads too slowly"
	lines, rest, ok := strings.Cut(got, told)
	if !ok {
		t.Fatalf("it was not told:\n%s", last(got))
	}
	numbered(t, lines, strings.Count(lines, "\n"))
	if strings.Count(rest, "\n") != 1 {
		t.Errorf("more came after it was told: %q", last(rest))
	}
}

func TestAHundredReadersOfOneContainerSeeTheSame(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	d.Docker(append([]string{"run", "-d", "-i", "--name", "box", image}, script("seq 1 20000; exec sleep 1000")...)...)
	_, conn := attached(t, d, "box")
	pid := record(t, d, "box").ShimPid
	alone := pss(t, pid)
	var readers []*bufio.Reader
	for range 50 {
		r, _ := request(t, d, "GET", "/containers/box/logs?follow=1&stdout=1&tail=0")
		readers = append(readers, bufio.NewReader(r.Body))
		r, _ = request(t, d, "POST", "/containers/box/attach?stdout=1&stream=1")
		readers = append(readers, bufio.NewReader(r.Body))
	}
	// The last to come are there once all have seen a line.
	greeted := make(chan error, len(readers))
	for _, r := range readers {
		go func() {
			var err error
			for got := ""; err == nil && !strings.HasSuffix(got, "hi\n"); {
				var b byte
				b, err = r.ReadByte()
				got += string(b)
			}
			greeted <- err
		}()
	}
	deadline := time.After(patience)
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
		case <-deadline:
			t.Fatal("not all readers see a line")
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
			t.Fatal("not all readers see all lines")
		}
	}
	t.Logf("the shim takes %d kB alone, %d with 100 readers, %d after they read", alone, many, pss(t, pid))
}

// upTo reads frames until the text ends with the given end.
func upTo(r io.Reader, end string) string {
	var text []byte
	head := make([]byte, 8)
	for !strings.HasSuffix(string(text[max(0, len(text)-len(end)-1):]), "\n"+end) {
		if _, err := io.ReadFull(r, head); err != nil {
			return string(text)
		}
		n := int(head[4])<<24 | int(head[5])<<16 | int(head[6])<<8 | int(head[7])
		p := make([]byte, n)
		if _, err := io.ReadFull(r, p); err != nil {
			return string(text)
		}
		text = append(text, p...)
	}
	return string(text)
}

func TestHalfClosedInputEndsInTheContainerWhileNoDaemonLives(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	d.Docker("create", "-i", "--name", "box", image, "sh", "-c", "cat; echo end")
	// As docker run -i does it: attached before the start, so that the input is
	// the container's only one.
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
		t.Errorf("after the input's end %q, want %q", got, want)
	}
	if got, want := end.answer(), "{\"StatusCode\":0}\n"; got != want {
		t.Errorf("answer %q, want %q", got, want)
	}
}

func TestDetachKeysLeaveTheContainerRunningWhileNoDaemonLives(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	x := inTerminal(t, d.DockerCommand(t.Context(), "run", "-it", "--name", "box", "--detach-keys", "ctrl-x,d", image, "sh"))
	x.shows("# ")
	x.settled()
	d.Kill9()
	x.types("echo st''ill\n")
	x.shows("still")
	x.types("\x18d")
	x.exits()
	d.Start()
	if got := d.Docker("inspect", "-f", "{{.State.Status}} {{.RestartCount}}", "box"); got != "running 0" {
		t.Errorf("after the detach keys: %s", got)
	}
	y := inTerminal(t, d.DockerCommand(t.Context(), "attach", "box"))
	y.types("echo ba''ck\n")
	y.shows("back")
}

func TestExecGoesOnWhileNoDaemonLives(t *testing.T) {
	for name, client := range clients {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := live(t, nil)
			d.Docker("run", "-d", "--name", "box", image, "sleep", "1000")
			x := inTerminal(t, client(d, "exec", "-it", "box", "sh"))
			x.shows("# ")
			x.settled()
			d.Kill9()
			x.types("echo st''ill\n")
			x.shows("still")
			// The client asks for the exit code afterwards: somebody must be there.
			d.Start()
			x.types("exit 5\n")
			if code := x.exits(); code != 5 {
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
