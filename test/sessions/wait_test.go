// SPDX-License-Identifier: Apache-2.0

package sessions

import (
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/test/kit"
)

func TestWaitIsAnsweredWhileNoDaemonLives(t *testing.T) {
	for _, condition := range []string{"not-running", "next-exit", "removed"} {
		t.Run(condition, func(t *testing.T) {
			t.Parallel()
			d := live(t, nil)
			args := []string{"-i", "--name", "box"}
			if condition == "removed" {
				args = append(args, "--rm")
			}
			create := append([]string{"create"}, args...)
			d.Docker(append(create, image, "sh", "-c", `while read x; do [ $x = hi ] && echo hi || exit $x; done`)...)
			var early *waiting
			if condition != "not-running" {
				early = waits(t, d, condition) // before a shim exists
			}
			d.Docker("start", "box")
			late := waits(t, d, condition)
			// An echo of the input proves that the shim serves this client.
			in, conn := request(t, d, "POST", "/containers/box/attach?stdin=1&stdout=1&stream=1")
			if _, err := io.WriteString(conn, "hi\n"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(in.Body, make([]byte, 11)); err != nil {
				t.Fatal(err)
			}
			d.Kill9()
			if _, err := io.WriteString(conn, "9\n"); err != nil {
				t.Fatal(err)
			}
			for _, w := range []*waiting{early, late} {
				if w != nil {
					if got, want := w.answer(), "{\"StatusCode\":9}\n"; got != want {
						t.Errorf("answer %q, want %q", got, want)
					}
				}
			}
			if condition == "removed" {
				d.Start()
				removed(t, d, "box")
			}
		})
	}
}

func TestWaitForRemovalIsAnsweredAfterTheNextDaemonsRemoval(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	d.Docker(append([]string{"run", "-d", "-i", "--rm", "--name", "box", image}, script("exit 6")...)...)
	_, conn := attached(t, d, "box")
	w := waits(t, d, "removed")
	d.Kill9()
	d.Start()
	if _, err := io.WriteString(conn, "go\n"); err != nil {
		t.Fatal(err)
	}
	if got, want := w.answer(), "{\"StatusCode\":6}\n"; got != want {
		t.Errorf("answer %q, want %q", got, want)
	}
	left, err := os.ReadDir(d.DataRoot + "/containers")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range left {
		// A hidden name belongs to a directory that is being deleted.
		if !strings.HasPrefix(l.Name(), ".") {
			t.Errorf("%s still exists after the answer", l.Name())
		}
	}
	removed(t, d, "box")
}

// When a client has gone, or the daemon has answered it, the shim keeps no
// descriptor of it.
func TestShimKeepsNothingOfClientsThatHaveGone(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	d.Docker(append([]string{"run", "-d", "-i", "--name", "box", image}, script("exit 0")...)...)
	_, conn := attached(t, d, "box")
	pid := record(d, "box").ShimPid
	before := descriptors(t, pid)
	for range 20 {
		w := waits(t, d, "next-exit")
		r, c := request(t, d, "GET", "/containers/box/logs?follow=1&stdout=1")
		io.ReadFull(r.Body, make([]byte, 8+3)) // the shim serves it
		w.c.Close()
		c.Close()
	}
	deadline := time.Now().Add(patience)
	for n := descriptors(t, pid); n > before; n = descriptors(t, pid) {
		if time.Now().After(deadline) {
			t.Fatalf("the shim has %d descriptors and had %d before", n, before)
		}
		// No event reports that the shim has closed a descriptor, so poll with
		// requests that take time.
		io.WriteString(conn, "hi\n")
	}
	io.WriteString(conn, "go\n")
}

func descriptors(t *testing.T, pid int) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

func TestSessionsOverPlainTCPGoOnToo(t *testing.T) {
	t.Parallel()
	d, over := overTCP(t)
	d.Load(image, kit.Busybox(t, nil))
	x := inTerminal(t, over("run", "-it", "--name", "shell", image, "sh"))
	x.Shows("# ")
	x.settled(t)
	log := over("logs", "-f", "shell")
	said := follow(t, log)
	if err := log.Start(); err != nil {
		t.Fatal(err)
	}
	said.Shows("BusyBox")
	d.Kill9()
	x.Type("echo st''ill\n")
	x.Shows("still")
	said.Shows("still")
	x.Type("exit 7\n")
	if code := x.ExitCode(); code != 7 {
		t.Errorf("exit code %d, want 7:\n%s", code, x)
	}
	if code := kit.ExitCode(t, log, said); code != 0 {
		t.Errorf("docker logs ended with %d:\n%s", code, said)
	}
}

// Over TCP a connection that is closed looks half-closed until something is written
// to it. The shim does not keep a client for that until its container ends.
func TestWaitOverTCPEndsWithItsClientAlsoWithoutADaemon(t *testing.T) {
	t.Parallel()
	d, command := overTCP(t)
	d.Load(image, kit.Busybox(t, nil))
	d.Docker("run", "-d", "--name", "box", image, "sleep", "1000")
	pid := record(d, "box").ShimPid
	open := func() int {
		list, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	until := func(what string, ok func(int) bool) {
		t.Helper()
		for late := time.Now().Add(patience); !ok(open()); d.DockerCommand(t.Context(), "--help").Run() {
			if time.Now().After(late) {
				t.Fatalf("%s: the shim has %d descriptors", what, open())
			}
		}
	}
	before := open()
	client := command("wait", "box")
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	until("a client that waits", func(n int) bool { return n > before })
	d.Kill9()
	client.Process.Kill()
	client.Wait()
	until("after the client", func(n int) bool { return n < before })
	d.Start()
	d.Docker("rm", "-f", "box")
}
