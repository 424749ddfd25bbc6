// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"holdfast/test/kit"
)

const image = "busybox:test"

// Every release manages the containers of every other release: containers that
// its daemon finds under the other's shims, and containers under its own shims
// when the other's daemon returns.
func TestEveryVersionManagesTheContainersOfEveryOther(t *testing.T) {
	vs := versions(t)
	for _, from := range vs {
		for _, to := range vs {
			if from != to {
				t.Run(from.name+" to "+to.name, func(t *testing.T) {
					t.Parallel()
					story(t, from, to)
				})
			}
		}
	}
}

// seen holds the properties that must not change while a container runs.
type seen struct {
	State struct {
		Status, StartedAt, Error string
		Pid, ExitCode            int
		Running                  bool
	}
	RestartCount    int
	NetworkSettings struct {
		Ports    map[string][]struct{ HostIP, HostPort string }
		Networks map[string]struct{ IPAddress, MacAddress string }
	}
}

func inspect(t *testing.T, d *kit.Daemon, name string) seen {
	t.Helper()
	var s []seen
	if err := json.Unmarshal([]byte(d.Docker("inspect", "--type", "container", name)), &s); err != nil || len(s) != 1 {
		t.Fatalf("inspect %s: %v", name, err)
	}
	return s[0]
}

func (s seen) String() string {
	return fmt.Sprintf("%+v restarts %d, network %+v", s.State, s.RestartCount, s.NetworkSettings)
}

func (s seen) url() string {
	return "http://127.0.0.1:" + s.NetworkSettings.Ports["80/tcp"][0].HostPort
}

// numbered checks lines that count from 1, and returns their number.
func numbered(t *testing.T, text string) int {
	t.Helper()
	n := 0
	for line := range strings.Lines(text) {
		n++
		if strings.TrimSpace(line) != strconv.Itoa(n) {
			t.Fatalf("line %d of the log is %q", n, line)
		}
	}
	return n
}

func story(t *testing.T, from, to version) {
	d := kit.Start(t, kit.Options{LiveRestore: true, Binary: from.holdfastd})
	d.Load(image, kit.Busybox(t, nil))
	word := d.Root + "/word"
	if err := os.Mkdir(word, 0o755); err != nil {
		t.Fatal(err)
	}
	const count = "i=0; while :; do i=$((i+1)); echo $i; usleep 20000; done"
	run := func(args ...string) { d.Docker(append([]string{"run", "-d", "-v", word + ":/word"}, args...)...) }
	run("--name", "web", "-p", "127.0.0.1::80", "--restart", "always", "-v", "kept:/data", image, "httpd", "-f", "-h", "/www")
	run("--name", "counts", image, "sh", "-c", count)
	run("--name", "ends", image, "sh", "-c", "while [ ! -e /word/go ]; do usleep 10000; done; exit 7")
	run("--name", "goes", "--rm", image, "sh", "-c", "while [ ! -e /word/go ]; do usleep 10000; done")
	d.Docker("create", "--name", "later", "-p", "127.0.0.1::80", "-v", "kept:/data", image, "httpd", "-f", "-h", "/www")
	d.Docker("exec", "web", "sh", "-c", "echo precious >/data/file")
	web, counts := inspect(t, d, "web"), inspect(t, d, "counts")
	port := kit.Probe(t, web.url())
	port.WaitAnswer(t)

	// The other release's daemon starts with the shims and files of the first.
	d.Kill9()
	if err := os.WriteFile(word+"/go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d.SetBinary(to.holdfastd)
	d.Start()
	same(t, d, map[string]seen{"web": web, "counts": counts})
	kit.Eventually(t, "the end of the container that ended meanwhile", func() bool { return inspect(t, d, "ends").State.ExitCode == 7 })
	kit.Eventually(t, "the removal by --rm", func() bool { return d.TryDocker("inspect", "goes").Code != 0 })
	manage(t, d)
	if r := port.Report(); len(r.Failures) > 0 {
		t.Errorf("the published port during the change: %s", r)
	}
	port.Stop()
	d.Docker("start", "later")
	replaced(t, d)

	// The first release's daemon returns, with shims and files of the other.
	// Containers that were started or restarted since then have shims of the
	// other release; the rest may still have their own.
	web, counts, later := inspect(t, d, "web"), inspect(t, d, "counts"), inspect(t, d, "later")
	fresh := kit.Probe(t, later.url())
	fresh.WaitAnswer(t)
	d.Kill9()
	d.SetBinary(from.holdfastd)
	d.Start()
	same(t, d, map[string]seen{"web": web, "counts": counts, "later": later})
	manage(t, d)
	if r := fresh.Report(); len(r.Failures) > 0 {
		t.Errorf("the published port during the change back: %s", r)
	}
	fresh.Stop()
	replaced(t, d)
	d.Docker("stop", "-t", "1", "later")
	d.Docker("rm", "later")
	if got := d.Docker("exec", "web", "cat", "/data/file"); got != "precious" {
		t.Errorf("the volume holds %q", got)
	}
	d.Docker("rm", "-f", "web", "counts", "ends")
	if got := d.Docker("ps", "-aq"); got != "" {
		t.Errorf("left: %s", got)
	}
}

// same checks that the containers were not affected.
func same(t *testing.T, d *kit.Daemon, before map[string]seen) {
	t.Helper()
	for name, was := range before {
		if is := inspect(t, d, name); is.String() != was.String() {
			t.Errorf("%s was\n%s\nand is\n%s", name, was, is)
		}
	}
}

// manage performs operations on the containers that don't change them.
func manage(t *testing.T, d *kit.Daemon) {
	t.Helper()
	if r := d.TryDocker("exec", "web", "sh", "-c", "echo in; exit 4"); r.Code != 4 || r.Stdout != "in\n" {
		t.Errorf("exec: %+v", r)
	}
	n := numbered(t, d.Docker("logs", "counts"))
	kit.Eventually(t, "more lines", func() bool { return numbered(t, d.Docker("logs", "counts")) > n })
	d.Docker("pause", "counts")
	if s := inspect(t, d, "counts"); s.State.Status != "paused" {
		t.Errorf("paused: %s", s)
	}
	d.Docker("unpause", "counts")
	if got := d.Docker("top", "web"); !strings.Contains(got, "httpd") {
		t.Errorf("top: %s", got)
	}
	if got := d.Docker("volume", "rm", "-f", "other"); got != "other" {
		t.Errorf("volume rm: %s", got)
	}
	if r := d.TryDocker("volume", "rm", "kept"); r.Code == 0 {
		t.Error("a volume in use was removed")
	}
}

// replaced performs operations that end the containers' runs and start new
// ones.
func replaced(t *testing.T, d *kit.Daemon) {
	t.Helper()
	before := inspect(t, d, "counts")
	d.Docker("restart", "-t", "1", "counts")
	if s := inspect(t, d, "counts"); !s.State.Running || s.State.Pid == before.State.Pid {
		t.Errorf("restarted: %s", s)
	}
	kit.Eventually(t, "its log", func() bool { return len(d.Docker("logs", "--tail", "3", "counts")) > 0 })
	d.Docker("rm", "-f", "counts")
	d.Docker("run", "-d", "--name", "counts", image, "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; usleep 20000; done")

	d.Docker("stop", "-t", "1", "web")
	if s := inspect(t, d, "web"); s.State.Running || s.State.Error != "" {
		t.Errorf("stopped: %s", s)
	}
	d.Docker("start", "web")
	p := kit.Probe(t, inspect(t, d, "web").url())
	p.WaitAnswer(t)
	p.Stop()
}
