// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// withSwarm is a commit that has swarm mode. It is not one of versions.txt, because its
// containers are those of later releases.
const withSwarm = "51f6b2a8662d5600632678624703424221207a9f"

// swarmProcess returns the executable of the daemon's swarm process, or "".
func swarmProcess(t *testing.T, d *kit.Daemon) string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if text, err := os.ReadFile(path); err == nil && strings.Contains(string(text), "holdfast-swarm\x00--data-root\x00"+d.DataRoot+"\x00") {
			exe, _ := os.Readlink(filepath.Dir(path) + "/exe")
			return exe
		}
	}
	return ""
}

// requests is a client that writes each request to its service that fails.
const requests = "until wget -qO/dev/null http://web/; do usleep 50000; done; while :; do timeout 5 wget -qO/dev/null http://web/ && date +%s > /at/ok || date +%s >> /at/failed; usleep 20000; done"

// The swarm process is of the daemon's release after each change, and tasks do not notice.
func TestTasksRunOnWhileTheirNodeChangesItsRelease(t *testing.T) {
	t.Parallel()
	old, err := build(moduleRoot(t), withSwarm)
	if err != nil {
		t.Fatal(err)
	}
	tree := version{"tree", kit.Binary(t, "holdfastd")}
	for _, name := range []string{"holdfast-shim", "holdfast-init", "holdfast-swarm"} {
		kit.Binary(t, name)
	}
	d := kit.Start(t, kit.Options{LiveRestore: true, Binary: old.holdfastd, Netns: kit.NewNetns(t)})
	defer func() {
		if t.Failed() {
			text, _ := os.ReadFile(d.ExecRoot + "/swarm/swarm.log")
			t.Logf("log of the swarm process:\n%s", text)
		}
		if r := d.TryDocker("swarm", "leave", "--force"); r.Code != 0 {
			t.Errorf("leave the swarm: %s", r.Stderr)
		}
	}()
	d.Load("busybox:latest", kit.Busybox(t, nil))
	d.Docker("swarm", "init", "--listen-addr", "127.0.0.1:2377", "--advertise-addr", "127.0.0.1:2377")
	d.Docker("network", "create", "-d", "overlay", "over")
	d.DockerWith(strings.NewReader("s3cret"), "secret", "create", "word", "-")
	dir := t.TempDir()
	d.Docker("service", "create", "-d", "--name", "web", "--network", "over", "--secret", "word", "--replicas", "2", "busybox:latest", "sh", "-c", "mkdir -p /www; echo hello > /www/index.html; exec httpd -f -p 80 -h /www")
	d.Docker("service", "create", "-d", "--name", "client", "--network", "over", "--mount", "type=bind,source="+dir+",target=/at", "busybox:latest", "sh", "-c", requests)
	// The containers of the first tasks, and the tasks that the manager knows.
	seen := func() string {
		var all []string
		for _, id := range strings.Fields(d.Docker("ps", "-q", "--no-trunc", "--filter", "label=com.docker.swarm.task")) {
			all = append(all, d.Docker("inspect", "--type", "container", id, "-f", "{{.Name}} {{.Id}} {{.State.Pid}} {{.State.StartedAt}}"))
		}
		return strings.Join(all, "\n") + "\n" + d.Docker("service", "ps", "web", "client", "--no-trunc", "--format", "{{.ID}} {{.Name}} {{.Error}}")
	}
	count := func(n int) {
		t.Helper()
		kit.Eventually(t, fmt.Sprintf("%d tasks run", n), func() bool {
			r := d.TryDocker("service", "ls", "--format", "{{.Name}} {{.Replicas}}")
			return strings.Contains(r.Stdout, fmt.Sprintf("web %d/%d", n, n)) && strings.Contains(r.Stdout, "client 1/1")
		})
	}
	count(2)
	kit.Eventually(t, "the client gets answers", func() bool { _, err := os.Stat(dir + "/ok"); return err == nil })

	replicas := 2
	for _, step := range []struct {
		name string
		to   version
		how  func()
	}{
		{"taken over by the next release", tree, func() { d.Takeover() }},
		{"taken over by the former release", old, func() { d.Takeover() }},
		{"killed, and the next release started", tree, func() { d.Kill9(); d.Start() }},
		{"stopped, and the former release started", old, func() { d.Restart() }},
		// It removes what the former release may have left.
		{"taken over by the next release at last", tree, func() { d.Takeover() }},
	} {
		before := seen()
		d.SetBinary(step.to.holdfastd)
		step.how()
		kit.Eventually(t, step.name+": the swarm process is of the same release", func() bool {
			return swarmProcess(t, d) == filepath.Join(filepath.Dir(step.to.holdfastd), "holdfast-swarm")
		})
		count(replicas)
		if after := seen(); after != before {
			t.Errorf("%s: before\n%s\nand after\n%s", step.name, before, after)
		}
		// The cluster works, with what each release has started.
		replicas++
		d.Docker("service", "scale", "-d", fmt.Sprintf("web=%d", replicas))
		count(replicas)
	}
	for _, id := range strings.Fields(d.Docker("ps", "-q", "--filter", "label=com.docker.swarm.service.name=web")) {
		if got := d.Docker("exec", id, "cat", "/run/secrets/word"); got != "s3cret" {
			t.Errorf("the secret is %q", got)
		}
	}
	if text, err := os.ReadFile(dir + "/failed"); err == nil {
		t.Errorf("requests failed at\n%s", text)
	}
	d.Docker("service", "rm", "web", "client")
	kit.Eventually(t, "the containers are removed", func() bool { return d.Docker("ps", "-aq") == "" })
}
