// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"holdfast/test/kit"
)

// The promises that a container never notices, however the daemon ends.
func TestContainerNeverNoticesTheDaemonsEnd(t *testing.T) {
	t.Parallel()
	d := live(t)
	url := web(t, d, "web")
	d.Holdfast("run", "-d", "--name", "terminal", "-t", image, "cat")
	d.Holdfast("run", "-d", "--name", "frozen", image, "sleep", "1000")
	d.Holdfast("pause", "frozen")
	p := kit.Probe(t, url)
	p.WaitAnswer(t)
	names := []string{"web", "terminal", "frozen"}
	before := map[string]string{}
	for _, n := range names {
		before[n] = identity(t, d, n)
	}
	table := rules(t, d)
	const startedAt = "{{ .State.StartedAt }}"
	started := d.Docker("container", "inspect", "web", "-f", startedAt)

	for _, c := range []struct {
		name string
		end  func()
	}{{"SIGKILL", d.Kill9}, {"SIGTERM", d.Term}, {"SIGKILL, and nobody reaps it", d.KillZombie}} {
		c.end()
		resp, err := http.Get(url)
		if err != nil {
			t.Fatalf("%s: with no daemon: %v", c.name, err)
		}
		resp.Body.Close()
		d.Start()
		for _, n := range names {
			if after := identity(t, d, n); after != before[n] {
				t.Errorf("%s\nwas %s\nis  %s", c.name, before[n], after)
			}
		}
		if after := rules(t, d); after != table {
			t.Errorf("%s: the packet filter was touched\nbefore:\n%s\nafter:\n%s", c.name, table, after)
		}
		if got := d.Holdfast("info", "-f", "{{.LiveRestoreEnabled}} {{.ContainersRunning}} {{.ContainersPaused}}"); got != "true 2 1" {
			t.Errorf("%s: info: %s", c.name, got)
		}
		// As Docker's documentation shows it, with Docker's client.
		if got := d.Docker("container", "inspect", "web", "-f", startedAt); got != started {
			t.Errorf("%s: started at %s, was %s", c.name, got, started)
		}
		if got := d.Docker("info"); !strings.Contains(got, "Live Restore Enabled: true") {
			t.Errorf("%s: docker info: %s", c.name, got)
		}
	}
	noFailure(t, p)
	d.Holdfast("unpause", "frozen")
}

// Operations that other engines are known to break by a restore.
func TestEverythingWorksAfterARestore(t *testing.T) {
	t.Parallel()
	d := live(t)
	d.Holdfast("run", "-d", "--name", "echo", "-i", image, "sh", "-c", "echo first; while read line; do echo got $line; done; exit 9")
	d.Kill9()
	d.Start()

	if got := d.Holdfast("exec", "echo", "echo", "exec works"); got != "exec works" {
		t.Errorf("exec: %q", got)
	}
	if r := d.TryHoldfast("exec", "echo", "sh", "-c", "exit 3"); r.Code != 3 {
		t.Errorf("exec: %+v", r)
	}
	if got := d.Holdfast("top", "echo"); !strings.Contains(got, "while read line") {
		t.Errorf("top: %s", got)
	}
	wait, _ := background(t, d, "wait", "echo")
	var waited strings.Builder
	wait.Stdout = &waited
	if err := wait.Start(); err != nil {
		t.Fatal(err)
	}
	attach, _ := background(t, d, "attach", "echo")
	var attached strings.Builder
	attach.Stdin, attach.Stdout = strings.NewReader("one\ntwo\n"), &attached
	if err := attach.Start(); err != nil {
		t.Fatal(err)
	}
	kit.Eventually(t, "attached input arrives", func() bool { return strings.Contains(d.Holdfast("logs", "echo"), "got two") })
	if got := d.Holdfast("logs", "echo"); got != "first\ngot one\ngot two" {
		t.Errorf("logs: %q", got)
	}
	d.Holdfast("kill", "echo")
	if err := wait.Wait(); err != nil || waited.String() != "137\n" {
		t.Errorf("wait: %q %v", waited.String(), err)
	}
	// The stream lasts as long as the container, and the client gets the exit
	// code.
	if attach.Wait(); attached.String() != "got one\ngot two\n" || attach.ProcessState.ExitCode() != 137 {
		t.Errorf("attach: %q %v", attached.String(), attach.ProcessState)
	}
	d.Holdfast("start", "echo")
	d.Holdfast("restart", "-t", "0", "echo")
	d.Holdfast("rename", "echo", "other")
	d.Kill9()
	d.Start()
	d.Holdfast("stop", "-t", "0", "other")
	d.Holdfast("rm", "other")
	if got := d.Holdfast("ps", "-aq"); got != "" {
		t.Errorf("left: %s", got)
	}
}

func TestExitCodeOfTheDowntimeIsKept(t *testing.T) {
	t.Parallel()
	d := live(t)
	for name, script := range map[string]string{"zero": "sleep 0.3", "nine": "sleep 0.3; exit 9", "all": "sleep 0.3; exit 255", "signal": "sleep 0.3; kill -USR1 $$; kill -9 1; sleep 1"} {
		d.Holdfast("run", "-d", "--name", name, "--init=false", image, "sh", "-c", script)
	}
	ids := map[string]string{}
	want := map[string]int{"zero": 0, "nine": 9, "all": 255}
	for name := range want {
		ids[name] = d.Holdfast("inspect", "-f", "{{.Id}}", name)
	}
	d.Kill9()
	for name := range want {
		kit.Eventually(t, name+" ends", func() bool { return record(d, ids[name]).Status == "exited" })
	}
	d.Start()
	for name, code := range want {
		if c := d.Inspect(name); c.State.ExitCode != code || c.State.Status != "exited" {
			t.Errorf("%s: %s %d", name, c.State.Status, c.State.ExitCode)
		}
	}
}

func TestSocketStaysTheSameWhileADaemonLives(t *testing.T) {
	t.Parallel()
	d := live(t)
	inode := func() uint64 {
		var st syscall.Stat_t
		if err := syscall.Stat(d.Socket, &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	before := inode()
	// A container that mounts the socket itself, not its folder.
	d.Holdfast("run", "-d", "--name", "agent", "-v", d.Socket+":/holdfast.sock", image, "sleep", "1000")
	d.Hup()
	second := d.Command()
	if out, err := second.CombinedOutput(); err == nil {
		t.Fatalf("a second daemon started: %s", out)
	}
	if after := inode(); after != before {
		t.Errorf("inode %d is now %d", before, after)
	}
}

// No other process can take the port of a running container, whether a daemon
// lives or not.
func TestPortOfARunningContainerCantBeTaken(t *testing.T) {
	t.Parallel()
	d := live(t)
	url := web(t, d, "web")
	address := strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/index.html")
	d.Kill9()
	if l, err := net.Listen("tcp", address); err == nil {
		l.Close()
		t.Errorf("another process can bind %s", address)
	}
	d.Start()
	r := d.TryHoldfast("run", "-d", "--name", "other", "-p", address+":80", image, "sleep", "1000")
	if r.Code == 0 || !strings.Contains(r.Stderr, "port is already allocated") {
		t.Errorf("%+v", r)
	}
	d.Holdfast("rm", "-f", "web")
	d.Holdfast("start", "other")
}

// Flushed rules must not fail a single request, and the next daemon restores
// them.
func TestFlushedRulesComeBack(t *testing.T) {
	t.Parallel()
	d := live(t)
	url := web(t, d, "web")
	before := handles.ReplaceAllString(rules(t, d), "")
	p := kit.Probe(t, url)
	p.WaitAnswer(t)
	if out, err := exec.Command("nft", "delete", "table", "inet", d.Table).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	resp, err := http.Get(url)
	if err != nil {
		t.Fatalf("without the rules: %v", err)
	}
	resp.Body.Close()
	d.Kill9()
	d.Start()
	if after := handles.ReplaceAllString(rules(t, d), ""); after != before {
		t.Errorf("was\n%s\nis\n%s", before, after)
	}
	noFailure(t, p)
}

var handles = regexp.MustCompile(` # handle \d+`)

// Any option may change between two daemons. A container keeps the values with
// which it was created.
func TestContainerSurvivesChangedOptions(t *testing.T) {
	t.Parallel()
	d := live(t)
	p := kit.Probe(t, web(t, d, "web", "-v", "kept:/kept"))
	p.WaitAnswer(t)
	before := identity(t, d, "web")
	for _, conf := range []map[string]any{
		{"registry-mirrors": []string{"https://mirror.invalid"}},
		{"log-driver": "local", "default-shm-size": "1m", "mtu": 1400},
		{"storage-driver": "native", "default-runtime": "other", "runtimes": map[string]any{"other": map[string]any{"path": "runc"}}},
		{"default-ulimits": map[string]any{"nofile": map[string]any{"Name": "nofile", "Soft": 100, "Hard": 100}}, "shutdown-timeout": 1},
	} {
		conf["live-restore"] = true
		d.WriteConfig(conf)
		d.Kill9()
		d.Start()
		if after := identity(t, d, "web"); after != before {
			t.Errorf("%v\nwas %s\nis  %s", conf, before, after)
		}
		if got := d.Holdfast("exec", "web", "cat", "/www/index.html"); got != "hello from busybox" {
			t.Errorf("%v: %s", conf, got)
		}
	}
	noFailure(t, p)
	d.Holdfast("restart", "-t", "0", "web")
	q := kit.Probe(t, page(d, "web"))
	q.WaitAnswer(t)
	noFailure(t, q)
}

func TestAddressesAreNotLeakedByManyDeaths(t *testing.T) {
	t.Parallel()
	d := kit.New(t, kit.Options{LiveRestore: true})
	// Only five addresses, so that a leaked address is noticed soon.
	d.SetFlags("--fixed-cidr", d.Address.Addr().String()+"/29")
	d.Start()
	d.Load(image, kit.Busybox(t, nil))
	kept := d.Holdfast("run", "-d", image, "sleep", "1000")
	before := identity(t, d, kept)
	for i := range 20 {
		id := d.Holdfast("run", "-d", image, "sleep", "1000")
		d.Kill9()
		if i%2 == 0 { // the container and its shim die together with the daemon
			for _, pid := range kit.Shims(t, id) {
				kit.Kill(t, pid)
			}
			kit.Kill(t, record(d, id).Pid)
		}
		d.Start()
		d.Holdfast("rm", "-f", id)
	}
	for range 4 {
		d.Holdfast("run", "-d", image, "sleep", "1000")
	}
	if after := identity(t, d, kept); after != before {
		t.Errorf("was %s, is %s", before, after)
	}
	if got := len(strings.Fields(d.Holdfast("ps", "-q"))); got != 5 {
		t.Errorf("%d containers run", got)
	}
}
