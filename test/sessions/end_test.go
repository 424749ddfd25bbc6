// SPDX-License-Identifier: Apache-2.0

package sessions

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"holdfast/test/kit"
)

// ends are the streams and answers whose end is a promise: after it the
// object's final state can be read, and its resources are free.
var ends = map[string]struct {
	early, late string // opened before the start, and after it
}{
	"attach before the start": {early: "POST /containers/%s/attach?stream=1&stdout=1"},
	"wait for the next exit":  {early: "POST /containers/%s/wait?condition=next-exit"},
	"attach":                  {late: "POST /containers/%s/attach?stream=1&stdout=1"},
	"logs":                    {late: "GET /containers/%s/logs?follow=1&stdout=1"},
	"wait":                    {late: "POST /containers/%s/wait"},
}

func TestEndOfAStreamIsAPromise(t *testing.T) {
	for what, between := range map[string]func(t *testing.T, d *kit.Daemon) (there <-chan struct{}){
		"the same daemon":             func(*testing.T, *kit.Daemon) <-chan struct{} { return nil },
		"the next daemon":             func(_ *testing.T, d *kit.Daemon) <-chan struct{} { d.Kill9(); d.Start(); return nil },
		"a daemon that is restarting": startsBeside,
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			d := live(t, nil)
			rounds := 3
			if what != "the same daemon" {
				rounds = 1
			}
			for name, end := range ends {
				for round := range rounds {
					box := fmt.Sprintf("box%d-%s", round, strings.ReplaceAll(name, " ", "-"))
					d.Docker("network", "create", box)
					d.Docker(append([]string{"create", "-i", "--network", box, "--name", box, image}, script("exit 7")...)...)
					var body io.Reader
					open := func(line string) {
						if line != "" {
							method, path, _ := strings.Cut(fmt.Sprintf(line, box), " ")
							r, _ := request(t, d, method, path)
							body = r.Body
						}
					}
					open(end.early)
					d.Docker("start", box)
					open(end.late)
					in, conn := attached(t, d, box)
					began := time.Now().Add(-time.Minute)
					there := between(t, d)
					if _, err := io.WriteString(conn, "go\n"); err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadAll(body); err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					ended(t, d, name, box, began)
					in.Body.Close()
					if there != nil {
						<-there
					}
					d.Docker("rm", box)
				}
			}
		})
	}
}

// startsBeside kills the daemon and starts the next one while the caller
// continues.
func startsBeside(_ *testing.T, d *kit.Daemon) <-chan struct{} {
	d.Kill9()
	there := make(chan struct{})
	go func() { defer close(there); d.Start() }()
	return there
}

// answer returns the first answer of a daemon. It waits for the daemon to
// start.
func answer(t *testing.T, d *kit.Daemon, method, path string) (int, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		r, err := http.NewRequestWithContext(ctx, method, "http://h"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := d.HTTP().Do(r)
		if ctx.Err() != nil {
			t.Fatalf("%s: no answer: %v", path, err)
		}
		if err != nil {
			continue // no daemon runs yet
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, b
	}
}

// ended checks the promises about a container, whose network has the same name.
func ended(t *testing.T, d *kit.Daemon, what, box string, since time.Time) {
	t.Helper()
	var c struct {
		State struct {
			Running  bool
			Status   string
			ExitCode int
		}
	}
	_, b := answer(t, d, "GET", "/containers/"+box+"/json")
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatalf("%s: %s: %v", what, b, err)
	}
	if c.State.Running || c.State.Status != "exited" || c.State.ExitCode != 7 {
		t.Errorf("%s: at the end of the stream the container is %+v", what, c.State)
	}
	_, list := answer(t, d, "GET", `/containers/json?all=1&filters={"name":["^/`+box+`$"]}`)
	if !bytes.Contains(list, []byte(`"State":"exited"`)) {
		t.Errorf("%s: listed as %s", what, list)
	}
	if code, b := answer(t, d, "DELETE", "/networks/"+box); code != http.StatusNoContent {
		t.Errorf("%s: its network can't be removed: %d %s", what, code, b)
	}
	_, b = answer(t, d, "GET", fmt.Sprintf(`/events?since=%d&until=%d.%09d&filters={"container":["%s"],"event":["die"]}`,
		since.Unix(), time.Now().Unix(), time.Now().Nanosecond(), box))
	if !bytes.Contains(b, []byte(`"exitCode":"7"`)) {
		t.Errorf("%s: no event reports its end: %s", what, b)
	}
}

func TestEndOfAnExecIsAPromise(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	d.Docker("run", "-d", "--name", "box", image, "sleep", "1000")
	since := time.Now().Add(-time.Minute).Unix()
	for round := range 8 {
		exec := d.CreateExec("box", fmt.Sprintf(`{"AttachStdin":true,"AttachStdout":true,"Tty":%v,"Cmd":["sh","-c","echo hi; read x; exit 5"]}`, round%2 == 1))
		_, r, c := asks(t, d, "POST /exec/"+exec+"/start", "Content-Length: 2\r\n\r\n{}")
		if line, err := r.ReadString('\n'); err != nil || !strings.Contains(line, "hi") {
			t.Fatalf("%q, %v", line, err)
		}
		if round == 7 {
			d.Kill9()
			d.Start()
		}
		if _, err := io.WriteString(c, "go\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		if _, b := answer(t, d, "GET", "/exec/"+exec+"/json"); !bytes.Contains(b, []byte(`"ExitCode":5`)) {
			t.Errorf("at the end of its stream: %s", b)
		}
		_, b := answer(t, d, "GET", fmt.Sprintf(`/events?since=%d&until=%d.%09d&filters={"event":["exec_die"]}`,
			since, time.Now().Unix(), time.Now().Nanosecond()))
		if !bytes.Contains(b, []byte(exec)) {
			t.Errorf("round %d: no event reports its end: %s", round, b)
		}
	}
	d.Docker("rm", "-f", "box")
}

// A client that reads the end of a run's stream finds the end of that run
// reported, although the container runs again.
func TestEndOfARunBeforeARestartIsAPromise(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	d.Docker("create", "-i", "--restart", "always", "--name", "box", image, "sh", "-c", "read x; exit 4")
	r, c := request(t, d, "POST", "/containers/box/attach?stream=1&stdin=1&stdout=1")
	d.Docker("start", "box")
	if _, err := io.WriteString(c, "go\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r.Body); err != nil {
		t.Fatal(err)
	}
	_, b := answer(t, d, "GET", fmt.Sprintf(`/events?since=%d&until=%d.%09d&filters={"event":["die"]}`,
		time.Now().Add(-time.Minute).Unix(), time.Now().Unix(), time.Now().Nanosecond()))
	if !bytes.Contains(b, []byte(`"exitCode":"4"`)) {
		t.Errorf("no event reports its end: %s", b)
	}
	d.Docker("rm", "-f", "box")
}
