// SPDX-License-Identifier: Apache-2.0

package sessions

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

const eventFormat = "{{.TimeNano}} {{.Type}} {{.Action}} {{.Actor.ID}}"

// TestEventsGoOnThroughKillRestartAndTakeover: a subscriber gets each event
// once, whatever happens to the daemon. Events of the time without a daemon
// arrive when the next daemon has started.
func TestEventsGoOnThroughKillRestartAndTakeover(t *testing.T) {
	for name, client := range clients {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := live(t, nil)
			begin := time.Now()
			cmd := client(d, "events", "--since", strconv.FormatInt(begin.Unix(), 10), "--format", eventFormat)
			s := follow(t, cmd)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			step := func(n int) {
				d.Docker("volume", "create", fmt.Sprintf("v%d", n))
				s.Shows(fmt.Sprintf("volume create v%d\n", n))
			}
			step(1)
			d.Docker("run", "-d", "--name", "box", image, "sh", "-c", `while ! [ -e /go ]; do usleep 10000; done; exit 3`)
			s.Shows("container start")
			touch := toTouch(t, d, "box", "/go")
			d.Kill9()
			touch()
			d.Start()
			s.Shows("container die")
			step(2)
			d.Restart()
			step(3)
			d.Takeover()
			step(4)
			d.Kill9()
			d.Start()
			step(5)

			until := strconv.FormatFloat(float64(time.Now().UnixNano())/1e9, 'f', 9, 64)
			want := d.Docker("events", "--since", strconv.FormatInt(begin.Unix(), 10), "--until", until, "--format", eventFormat)
			// Events arrive in the order in which they are recorded; a replay
			// has the order of their times.
			if got, want := sorted(s.String()), sorted(want+"\n"); got != want {
				t.Errorf("followed:\n%s\nthe journal has:\n%s", got, want)
			}
			if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
		})
	}
}

// TestEventsOverPlainTCPGoOnToo: and they end at the time that the client has
// requested, although the daemon that it connected to is dead.
func TestEventsOverPlainTCPGoOnToo(t *testing.T) {
	t.Parallel()
	d, over := overTCP(t)
	until := time.Now().Add(8 * time.Second)
	cmd := over("events", "--until", strconv.FormatInt(until.Unix(), 10), "--format", eventFormat)
	s := follow(t, cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	awaitEventServer(t, d)
	d.Docker("volume", "create", "one")
	s.Shows("volume create one\n")
	d.Kill9()
	if code := kit.ExitCode(t, cmd, s); code != 0 {
		t.Errorf("docker events ended with %d:\n%s", code, s)
	}
	if time.Now().Before(until.Truncate(time.Second)) {
		t.Error("the events ended before the requested time")
	}
	d.Start()
}

// TestEventsEndWithTheContainers: when the daemon stops its containers, no more
// events can come, so the stream ends.
func TestEventsEndWithTheContainers(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{})
	d.Load(image, kit.Busybox(t, nil))
	d.Docker("run", "-d", "--name", "box", image, "sleep", "1000")
	r, _ := request(t, d, "GET", "/events")
	d.Term()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Errorf("the stream was cut: %v", err)
	}
	if !strings.Contains(string(text), `"Action":"die"`) {
		t.Errorf("the container's end is not in the stream:\n%s", text)
	}
	d.Start()
}

// TestEventServerLivesAsLongAsItsClients: a killed event server is replaced.
// Its clients recognize the kill by the end of their streams.
func TestEventServerLivesAsLongAsItsClients(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{LiveRestore: true})
	if pids := kit.EventServers(t, d); len(pids) != 0 {
		t.Fatalf("processes %v serve events although no client subscribes", pids)
	}
	first, _ := request(t, d, "GET", "/events")
	second, conn := request(t, d, "GET", "/events")
	pids := kit.EventServers(t, d)
	if len(pids) != 1 {
		t.Fatalf("processes %v serve events, want one", pids)
	}
	if got := d.Docker("info", "--format", "{{.NEventsListener}}"); got != "2" {
		t.Errorf("%s listeners, want 2", got)
	}
	// The demo in the README kills the processes that pidof finds.
	if out, err := exec.Command("pidof", "holdfastd").Output(); err != nil || slices.Contains(strings.Fields(string(out)), strconv.Itoa(pids[0])) {
		t.Errorf("pidof holdfastd finds %q, %v, and with it the event server %d", out, err, pids[0])
	}
	conn.Close()
	_ = second
	if err := unix.Kill(pids[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(first.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the stream of a killed event server ended with %v, want one that was cut", err)
	}
	third, conn := request(t, d, "GET", "/events")
	d.Docker("volume", "create", "data")
	line, err := bufio.NewReader(third.Body).ReadString('\n')
	if err != nil || !strings.Contains(line, `"ID":"data"`) {
		t.Errorf("%q, %v", line, err)
	}
	d.Kill9()
	conn.Close()
	deadline := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for len(kit.EventServers(t, d)) > 0 {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the event server stays without daemon and clients")
		}
	}
	d.Start()
}

func awaitEventServer(t *testing.T, d *kit.Daemon) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for d.Docker("info", "--format", "{{.NEventsListener}}") == "0" {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("no client subscribes to events")
		}
	}
}

func sorted(text string) string {
	lines := strings.Split(text, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
