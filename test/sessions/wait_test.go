package sessions

import (
	"io"
	"net"
	"os"
	"os/exec"
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
				early = waits(t, d, condition) // before there is a shim
			}
			d.Docker("start", "box")
			late := waits(t, d, condition)
			// An answer to what is typed shows that the shim has this client.
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
		// Under another name it is gone, and being deleted.
		if !strings.HasPrefix(l.Name(), ".") {
			t.Errorf("after the answer there is still %s", l.Name())
		}
	}
	removed(t, d, "box")
}

// A client that goes, or is answered by the daemon, leaves nothing with the shim.
func TestShimKeepsNothingOfClientsThatHaveGone(t *testing.T) {
	t.Parallel()
	d := live(t, nil)
	d.Docker(append([]string{"run", "-d", "-i", "--name", "box", image}, script("exit 0")...)...)
	_, conn := attached(t, d, "box")
	pid := record(t, d, "box").ShimPid
	before := descriptors(t, pid)
	for range 20 {
		w := waits(t, d, "next-exit")
		r, c := request(t, d, "GET", "/containers/box/logs?follow=1&stdout=1")
		io.ReadFull(r.Body, make([]byte, 8+3)) // the shim has it
		w.c.Close()
		c.Close()
	}
	deadline := time.Now().Add(patience)
	for n := descriptors(t, pid); n > before; n = descriptors(t, pid) {
		if time.Now().After(deadline) {
			t.Fatalf("the shim has %d descriptors, and had %d before", n, before)
		}
		// The shim tells nobody: each question gives it time.
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
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	d := kit.New(t, kit.Options{LiveRestore: true})
	d.SetFlags("-H", d.Host, "-H", "tcp://"+address, "--tls=false")
	d.Start()
	d.Load(image, kit.Busybox(t, nil))
	over := func(args ...string) *exec.Cmd {
		return d.DockerCommand(t.Context(), append([]string{"-H", "tcp://" + address}, args...)...)
	}
	x := inTerminal(t, over("run", "-it", "--name", "shell", image, "sh"))
	x.shows("# ")
	x.settled()
	log := over("logs", "-f", "shell")
	said := follow(t, log)
	if err := log.Start(); err != nil {
		t.Fatal(err)
	}
	said.shows("BusyBox")
	d.Kill9()
	x.types("echo st''ill\n")
	x.shows("still")
	said.shows("still")
	x.types("exit 7\n")
	if code := x.exits(); code != 7 {
		t.Errorf("exit code %d, want 7:\n%s", code, x)
	}
	if code := exits(t, log, said.String); code != 0 {
		t.Errorf("docker logs ended with %d:\n%s", code, said)
	}
}
