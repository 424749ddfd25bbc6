// SPDX-License-Identifier: Apache-2.0

package sessions

import (
	"io"
	"strconv"
	"testing"
	"time"
)

// The daemon sends the lines of a log that is not followed, and the shim those
// of a followed one. Both must be the same.
func TestFollowedLogIsTheLogWithEveryOption(t *testing.T) {
	t.Parallel()
	const long = "head -c 50000 /dev/zero | tr '\\0' x; echo; echo after; echo err >&2; printf no-newline"
	for _, c := range []struct{ name, driver, run string }{
		{"json-file", "json-file", "-i"},
		{"local", "local", "-i"},
		{"terminal", "json-file", "-it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := live(t, nil)
			args := []string{"run", "-d", c.run, "--name", "box", "--log-driver", c.driver}
			if c.driver == "json-file" {
				args = append(args, "--label", "a=b c&d", "--log-opt", "labels=a")
			}
			args = append(args, image, "sh", "-c", "echo one; echo two; read x; "+long)
			d.Docker(args...)
			started, err := time.Parse(time.RFC3339Nano, d.Docker("inspect", "-f", "{{.State.StartedAt}}", "box"))
			if err != nil {
				t.Fatal(err)
			}
			options := []string{
				"", "&timestamps=1", "&details=1&timestamps=1", "&tail=1", "&tail=0", "&stderr=0", "&stdout=0",
				"&since=" + strconv.FormatInt(started.Unix()-5, 10), "&since=" + strconv.FormatInt(started.Unix()+3600, 10),
			}
			const path = "/containers/box/logs?stdout=1&stderr=1"
			var followed []func() string
			for _, o := range options {
				r, conn := request(t, d, "GET", query(path+"&follow=1", o))
				followed = append(followed, func() string { return body(t, r, conn) })
			}
			_, conn := request(t, d, "POST", "/containers/box/attach?stdin=1&stream=1")
			if _, err := io.WriteString(conn, "go\n"); err != nil {
				t.Fatal(err)
			}
			for i, o := range options {
				got := followed[i]()
				if o == "&tail=1" || o == "&tail=0" {
					continue // its end has changed meanwhile
				}
				r, conn := request(t, d, "GET", query(path, o))
				want := body(t, r, conn)
				if got != want {
					t.Errorf("%q: the follower got %d bytes, the log has %d\n%.300q\n%.300q", o, len(got), len(want), got, want)
				}
				if want == "" && (o == "" || o == "&timestamps=1") {
					t.Errorf("%q: the log is empty", o)
				}
			}
		})
	}
}

func TestFollowingEndsAtTheTimeAskedFor(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	d.Docker("run", "-d", "--name", "box", image, "sh", "-c", "echo one; exec sleep 1000")
	until := time.Now().Add(2 * time.Second)
	r, conn := request(t, d, "GET", "/containers/box/logs?follow=1&stdout=1&until="+strconv.FormatFloat(float64(until.UnixMilli())/1000, 'f', 3, 64))
	d.Kill9()
	if got := body(t, r, conn); got != "\x01\x00\x00\x00\x00\x00\x00\x04one\n" {
		t.Errorf("followed %q", got)
	}
	if now := time.Now(); now.Before(until.Add(-time.Millisecond)) {
		t.Errorf("the stream ended %s too early", until.Sub(now))
	}
}
