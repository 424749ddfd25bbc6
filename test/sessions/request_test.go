// SPDX-License-Identifier: Apache-2.0

package sessions

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"

	"holdfast/test/kit"
)

// bodies are the ways in which clients send a body with a request that upgrades
// the connection. dockerode sends the options of an attach like this.
var bodies = map[string]string{
	"Content-Length": "Content-Length: 36\r\n\r\n" + `{"stdin":true,"stream":true,"x":"y"}`,
	"chunked":        "Transfer-Encoding: chunked\r\n\r\n24\r\n" + `{"stdin":true,"stream":true,"x":"y"}` + "\r\n0\r\n\r\n",
	"in two chunks":  "Transfer-Encoding: chunked\r\n\r\n10\r\n" + `{"stdin":true,"s` + "\r\n14\r\n" + `tream":true,"x":"y"}` + "\r\n0\r\n\r\n",
	"empty chunked":  "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}

// asks sends a request whose header ends with rest. It returns the answer, and
// the connection with the data that follows.
func asks(t *testing.T, d *kit.Daemon, line, rest string) (*http.Response, *bufio.Reader, *net.UnixConn) {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: d.Socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n%s", line, rest)
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return res, r, c
}

func TestBodyOfARequestIsNoInputOfTheContainer(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	for name, body := range bodies {
		for _, upgrade := range []string{"", "Connection: Upgrade\r\nUpgrade: tcp\r\n"} {
			// A client may send input together with the request.
			const typed = "typed\n"
			id := d.Docker("create", "-i", image, "cat")
			res, r, c := asks(t, d, "POST /containers/"+id+"/attach?stream=1&stdin=1&stdout=1", upgrade+body+typed)
			d.Docker("start", id)
			c.CloseWrite()
			if got, err := stdoutOf(r); err != nil || got != typed {
				t.Errorf("attach, %s, %d: the container read %q, %v; want %q alone", name, res.StatusCode, got, err, typed)
			}
			d.Docker("rm", id)
		}
	}
	d.Docker("run", "-d", "-i", "--name", "box", image, "sh", "-c", "read x; exit 5")
	for name, body := range bodies {
		if name == "empty chunked" {
			continue // the options of an exec are its body
		}
		exec := d.CreateExec("box", `{"AttachStdin":true,"AttachStdout":true,"Cmd":["cat"]}`)
		_, r, c := asks(t, d, "POST /exec/"+exec+"/start", body+"typed\n")
		c.CloseWrite()
		if got, err := stdoutOf(r); err != nil || got != "typed\n" {
			t.Errorf("exec, %s: the process read %q, %v", name, got, err)
		}
		// These connections are upgraded, too.
		res, _, _ := asks(t, d, "GET /containers/box/logs?follow=1&stdout=1", body)
		if res.StatusCode != http.StatusOK {
			t.Errorf("logs, %s: %s", name, res.Status)
		}
		res, _, _ = asks(t, d, "POST /containers/box/wait", body)
		if res.StatusCode != http.StatusOK {
			t.Errorf("wait, %s: %s", name, res.Status)
		}
		res, _, _ = asks(t, d, "GET /containers/box/attach/ws?stream=1&stdin=1&stdout=1",
			"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"+body)
		if res.StatusCode != http.StatusSwitchingProtocols {
			t.Errorf("websocket, %s: %s", name, res.Status)
		}
	}
	// None of the bodies was taken for input, not even a line break.
	if got := d.Docker("inspect", "-f", "{{.State.Running}}", "box"); got != "true" {
		t.Error("the container has read input")
	}
	d.Docker("rm", "-f", "box")
}

// stdoutOf reads a multiplexed stream to its end.
func stdoutOf(r io.Reader) (string, error) {
	var out bytes.Buffer
	_, err := stdcopy.StdCopy(&out, io.Discard, r)
	return out.String(), err
}

func TestBodyWithoutAnEndIsRefused(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	d.Docker("run", "-d", "-i", "--name", "box", image, "cat")
	res, _, _ := asks(t, d, "POST /containers/box/attach?stream=1&stdin=1&stdout=1",
		"Content-Length: 2000000\r\n\r\n"+strings.Repeat("x", 2000000))
	if res.StatusCode != http.StatusBadRequest {
		t.Errorf("a body of 2 MB: %s", res.Status)
	}
	res, _, _ = asks(t, d, "POST /containers/box/attach?stream=1&stdin=1&stdout=1", "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
	if res.StatusCode != http.StatusBadRequest {
		t.Errorf("a body that does not end: %s", res.Status)
	}
	if out := d.Docker("logs", "box"); out != "" {
		t.Errorf("the container read %.100q", out)
	}
	d.Docker("rm", "-f", "box")
}

// As in Docker, a resize succeeds for processes without a terminal. For an exec
// that has not started, the size is kept; Docker waits ten seconds and fails.
func TestResizeOfWhatHasNoTerminal(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	d.Docker("run", "-d", "--name", "box", image, "sleep", "1000")
	d.Docker("create", "--name", "new", image, "true")
	d.Docker("create", "-t", "--name", "newtty", image, "true")
	post := func(path, body string) int {
		t.Helper()
		r, err := d.HTTP().Post("http://h"+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		return r.StatusCode
	}
	expect := func(what, path string, want int) {
		t.Helper()
		if got := post(path+"/resize?h=17&w=33", ""); got != want {
			t.Errorf("%s: status %d, want %d", what, got, want)
		}
	}
	began := time.Now()
	expect("a container without a terminal", "/containers/box", http.StatusOK)
	expect("a container that has not started", "/containers/new", http.StatusConflict)
	expect("one with a terminal that has not started", "/containers/newtty", http.StatusConflict)
	plain := d.CreateExec("box", `{"Cmd":["sleep","1000"]}`)
	expect("an exec without a terminal that has not started", "/exec/"+plain, http.StatusOK)
	post("/exec/"+plain+"/start", `{"Detach":true}`)
	expect("an exec without a terminal", "/exec/"+plain, http.StatusOK)
	tty := d.CreateExec("box", `{"AttachStdout":true,"Tty":true,"Cmd":["stty","size"]}`)
	expect("an exec that has not started", "/exec/"+tty, http.StatusOK)
	_, r, _ := asks(t, d, "POST /exec/"+tty+"/start", "Content-Length: 12\r\n\r\n"+`{"Tty":true}`)
	if got, err := io.ReadAll(r); err != nil || string(got) != "17 33\r\n" {
		t.Errorf("the exec started with the size %q: %v", got, err)
	}
	expect("an exec that has ended", "/exec/"+tty, http.StatusNotFound)
	expect("an exec that there is not", "/exec/0123456789ab", http.StatusNotFound)
	until := fmt.Sprintf("%d.%09d", time.Now().Unix(), time.Now().Nanosecond())
	events := d.Docker("events", "--since", fmt.Sprint(began.Unix()-1), "--until", until, "--filter", "event=resize",
		"--format", "{{.Actor.Attributes.name}} {{.Actor.Attributes.height}} {{.Actor.Attributes.width}}")
	if events != "box 17 33" {
		t.Errorf("events %q", events)
	}
	d.Docker("rm", "-f", "box", "new", "newtty")
}

// As in Docker, the start of an exec decides on the form of the output: clients
// that leave "Tty" out read frames, also if the exec has a terminal. The size that
// was given when the exec was created holds unless the start names another.
func TestFormAndSizeOfAnExecAreThoseThatWereAskedFor(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	d.Docker("run", "-d", "--name", "box", image, "sleep", "1000")
	const framed, multiplexed, raw = "\x01\x00\x00\x00\x00\x00\x00", "application/vnd.docker.multiplexed-stream", "application/vnd.docker.raw-stream"
	for _, c := range []struct{ create, start, kind, want string }{
		{`"Tty":true,"ConsoleSize":[11,22]`, `{"Tty":true}`, raw, "11 22\r\n"},
		{`"Tty":true,"ConsoleSize":[11,22]`, `{"Tty":true,"ConsoleSize":[33,44]}`, raw, "33 44\r\n"},
		{`"Tty":true,"ConsoleSize":[11,22]`, `{}`, multiplexed, framed + "\x0711 22\r\n"},
		{`"Tty":true,"ConsoleSize":[11,22]`, `{"ConsoleSize":[33,44]}`, multiplexed, framed + "\x0711 22\r\n"},
		{`"Tty":false,"ConsoleSize":[11,22]`, `{"Tty":true}`, raw, "none\n"},
		{`"Tty":false`, `{}`, multiplexed, framed + "\x05none\n"},
	} {
		exec := d.CreateExec("box", `{"AttachStdout":true,`+c.create+`,"Cmd":["sh","-c","stty size 2>/dev/null || echo none"]}`)
		res, r, _ := asks(t, d, "POST /exec/"+exec+"/start", fmt.Sprintf("Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: %d\r\n\r\n%s", len(c.start), c.start))
		got, err := io.ReadAll(r)
		if kind := res.Header.Get("Content-Type"); err != nil || string(got) != c.want || kind != c.kind {
			t.Errorf("created with %s and started with %s: %s %q, %v; want %s %q", c.create, c.start, kind, got, err, c.kind, c.want)
		}
	}
	// The form stays over an upgrade of the shim.
	exec := d.CreateExec("box", `{"AttachStdin":true,"AttachStdout":true,"Tty":true,"Cmd":["sh","-c","stty -echo; echo up; read x; echo $x"]}`)
	_, r, c := asks(t, d, "POST /exec/"+exec+"/start", "Content-Length: 2\r\n\r\n{}")
	head := make([]byte, len(framed)+1+len("up\r\n"))
	if _, err := io.ReadFull(r, head); err != nil {
		t.Fatal(err)
	}
	d.Holdfast("daemon", "upgrade", "--shims")
	if _, err := io.WriteString(c, "typed\n"); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(r)
	if got, want := string(head)+string(rest), framed+"\x04up\r\n"+framed+"\x07typed\r\n"; got != want || err != nil {
		t.Errorf("over an upgrade of the shim: %q, %v; want %q", got, err, want)
	}
	d.Docker("rm", "-f", "box")
}
