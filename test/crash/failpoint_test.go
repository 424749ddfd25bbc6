// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/network/dump"
	"holdfast/test/kit"
)

// story is a crash inside one operation, at each of its failpoints.
type story struct {
	name   string
	points []string
	// before sets the scene under a daemon that does not crash.
	before func(t *testing.T, d *kit.Daemon)
	// do is the operation in which the daemon dies; nil is the daemon's start.
	do func(d *kit.Daemon)
	// after checks the state under the next daemon. It may leave the container
	// "new", which is then removed.
	after func(t *testing.T, d *kit.Daemon, point string)
}

const (
	// Serves a page, and exits with 7 on SIGUSR1.
	server = "httpd -p 80 -h /www; trap 'exit 7' USR1; while :; do sleep 0.02; done"
)

func created(_ *testing.T, d *kit.Daemon) {
	d.Holdfast("create", "--name", "new", "-p", "127.0.0.1::80", "-v", "/www", image, "sh", "-c", server)
}

func running(_ *testing.T, d *kit.Daemon) {
	d.Holdfast("run", "-d", "--name", "new", "-p", "127.0.0.1::80", "-v", "/www", image, "sh", "-c", server)
}

func status(d *kit.Daemon, name string) string {
	r := d.TryHoldfast("inspect", "-f", "{{.State.Status}}", name)
	if r.Code != 0 {
		return "gone"
	}
	return strings.TrimSpace(r.Stdout)
}

// oneOrNone checks that the listed container runs exactly once, with one shim,
// or not at all.
func oneOrNone(t *testing.T, d *kit.Daemon, name string) {
	t.Helper()
	c := d.Inspect(name)
	shims := kit.Shims(t, c.ID)
	switch {
	case c.State.Running && (len(shims) != 1 || !kit.Alive(c.State.Pid)):
		t.Errorf("container %s is %s, with shims %v and process %d", name, c.State.Status, shims, c.State.Pid)
	case !c.State.Running && len(shims) != 0:
		t.Errorf("%s is %s with shims %v", name, c.State.Status, shims)
	}
}

// createdAndRemovedOnce checks that each container has one event of its creation, and
// each but the neighbour one of its removal.
func createdAndRemovedOnce(t *testing.T, d *kit.Daemon) {
	t.Helper()
	lives := map[string][]message{}
	for _, m := range events(t, d, time.Unix(1, 0), "type=container") {
		lives[m.Actor.ID] = append(lives[m.Actor.ID], m)
	}
	neighbour := d.Inspect("neighbour").ID
	for id, life := range lives {
		removed := 1
		if id == neighbour {
			removed = 0
		}
		if c, r := count(life, "create"), count(life, "destroy"); c != 1 || r != removed {
			t.Errorf("%.12s has %d events of its creation and %d of its removal", id, c, r)
		}
	}
}

// serves starts "new" unless it runs, and requests its page.
func serves(t *testing.T, d *kit.Daemon) {
	t.Helper()
	d.Holdfast("start", "new")
	p := kit.Probe(t, page(d, "new"))
	p.WaitAnswer(t)
	noFailure(t, p)
	oneOrNone(t, d, "new")
}

var stories = []story{
	{
		name:   "commit",
		points: []string{"commit.noted", "commit.frozen", "commit.packed", "commit.thawed", "commit.recorded"},
		before: running,
		do:     func(d *kit.Daemon) { d.TryHoldfast("commit", "new", "made:1") },
		after: func(t *testing.T, d *kit.Daemon, point string) {
			if got := status(d, "new"); got != "running" {
				t.Errorf("the container is %s", got)
			}
			serves(t, d)
			if made := d.TryHoldfast("rmi", "made:1").Code == 0; made != (point == "commit.recorded") {
				t.Errorf("an image exists: %v", made)
			}
			// Commit again, without a crash.
			d.Holdfast("commit", "new", "made:2")
			d.Holdfast("rmi", "made:2")
			serves(t, d)
		},
	},
	{
		name:   "create",
		points: []string{"create.begun", "create.noted-volume", "create.made-volumes", "create.prepared", "create.copied", "create.recorded", "create.told"},
		before: func(*testing.T, *kit.Daemon) {},
		do: func(d *kit.Daemon) {
			d.TryHoldfast("create", "--name", "new", "-p", "127.0.0.1::80", "-v", "/www", image, "sh", "-c", server)
		},
		after: func(t *testing.T, d *kit.Daemon, point string) {
			there := point == "create.recorded" || point == "create.told"
			if got := status(d, "new"); there != (got == "created") {
				t.Errorf("the container is %s", got)
			}
			if !there {
				created(t, d)
			}
			serves(t, d)
		},
	},
	{
		name: "start",
		points: []string{
			"launch.prepared", "launch.recorded", "launch.made-run-directory", "launch.joined", "launch.published",
			"launch.bundled", "launch.spawned", "launch.subscribed", "launch.started",
		},
		before: created,
		do:     func(d *kit.Daemon) { d.TryHoldfast("start", "new") },
		after: func(t *testing.T, d *kit.Daemon, point string) {
			want := "created"
			if point == "launch.started" {
				want = "running"
			}
			if got := status(d, "new"); got != want {
				t.Errorf("the container is %s, want %s", got, want)
			}
			oneOrNone(t, d, "new")
			serves(t, d)
		},
	},
	{
		name:   "start again, by a policy that finishes it",
		points: []string{"launch.recorded", "launch.bundled", "launch.spawned", "launch.started"},
		before: func(t *testing.T, d *kit.Daemon) {
			d.Holdfast("run", "-d", "--name", "new", "--restart", "unless-stopped", "-p", "127.0.0.1::80", image, "sh", "-c", server)
			d.Holdfast("stop", "-t", "0", "new")
		},
		do: func(d *kit.Daemon) { d.TryHoldfast("start", "new") },
		after: func(t *testing.T, d *kit.Daemon, _ string) {
			kit.Eventually(t, "the container runs", func() bool { return status(d, "new") == "running" })
			serves(t, d)
		},
	},
	{
		name:   "start with a part of a volume",
		points: []string{"launch.placed-subpath"},
		before: func(_ *testing.T, d *kit.Daemon) {
			d.Holdfast("run", "--rm", "-v", "parts:/v", image, "sh", "-c", "mkdir /v/a; echo part >/v/a/index.html")
			d.Holdfast("create", "--name", "new", "-p", "127.0.0.1::80", "--mount", "type=volume,source=parts,target=/www,volume-subpath=a", image, "sh", "-c", server)
		},
		do: func(d *kit.Daemon) { d.TryHoldfast("start", "new") },
		after: func(t *testing.T, d *kit.Daemon, _ string) {
			if got := status(d, "new"); got != "created" {
				t.Errorf("the container is %s", got)
			}
			if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || regexp.MustCompile(regexp.QuoteMeta(d.ExecRoot)+`/shim/\S+/subpaths/`).Match(mounts) {
				t.Errorf("left mounted: %v\n%s", err, mounts)
			}
			serves(t, d)
			d.Holdfast("rm", "-f", "new")
			d.Holdfast("volume", "rm", "parts")
		},
	},
	{
		name:   "start that fails",
		points: []string{"launch.undone", "launch.failed"},
		before: func(_ *testing.T, d *kit.Daemon) {
			d.Holdfast("create", "--name", "new", "-v", "/www", image, "/no/such/program")
		},
		do: func(d *kit.Daemon) { d.TryHoldfast("start", "new") },
		after: func(t *testing.T, d *kit.Daemon, _ string) {
			if got := status(d, "new"); got != "created" {
				t.Errorf("the container is %s", got)
			}
			if r := d.TryHoldfast("start", "new"); r.Code == 0 || !strings.Contains(r.Stderr, "no such file") {
				t.Errorf("%+v", r)
			}
		},
	},
	{
		name:   "stop",
		points: []string{"halt.recorded", "halt.stopped", "end.seen", "end.gave-back", "end.told"},
		before: running,
		do:     func(d *kit.Daemon) { d.TryHoldfast("stop", "-t", "0", "new") },
		after: func(t *testing.T, d *kit.Daemon, point string) {
			want := "exited"
			if point == "halt.recorded" { // the shim did not receive the request
				want = "running"
			}
			if got := status(d, "new"); got != want {
				t.Errorf("the container is %s, want %s", got, want)
			}
			serves(t, d)
		},
	},
	{
		name:   "end",
		points: []string{"end.seen", "end.gave-back", "end.told"},
		before: running,
		do:     func(d *kit.Daemon) { d.TryHoldfast("kill", "-s", "USR1", "new") },
		after: func(t *testing.T, d *kit.Daemon, _ string) {
			c := d.Inspect("new")
			if c.State.Status != "exited" || c.State.ExitCode != 7 {
				t.Errorf("the container is %s with %d", c.State.Status, c.State.ExitCode)
			}
			if n := count(events(t, d, time.Unix(1, 0), "container="+c.ID), "die"); n != 1 {
				t.Errorf("%d die events", n)
			}
			serves(t, d)
		},
	},
	{
		name: "remove",
		points: []string{
			"remove.recorded", "remove.halted", "remove.gave-back", "remove.removed-volumes",
			"remove.cleared-run-directory", "remove.removed-files", "remove.set-aside", "remove.told", "remove.forgotten",
		},
		before: running,
		do:     func(d *kit.Daemon) { d.TryHoldfast("rm", "-f", "-v", "new") },
		after: func(t *testing.T, d *kit.Daemon, _ string) {
			kit.Eventually(t, "the container is removed", func() bool { return status(d, "new") == "gone" })
			created(t, d) // the name is free, so create succeeds
		},
	},
	{
		name: "restore",
		points: []string{
			"restore.looked", "restore.held-images", "restore.joined-networks", "restore.mounted-volumes",
			"restore.applied", "restore.done",
		},
		before: func(t *testing.T, d *kit.Daemon) {
			running(t, d)
			d.Holdfast("create", "--name", "idle", image)
			d.Holdfast("create", "--name", "again", "--restart", "always", image, "sleep", "1000")
		},
		after: func(t *testing.T, d *kit.Daemon, _ string) {
			if got := status(d, "new") + " " + status(d, "idle") + " " + status(d, "again"); got != "running created created" {
				t.Error(got)
			}
			serves(t, d)
			d.Holdfast("rm", "idle", "again")
		},
	},
	{
		name:   "restore after a crash inside start",
		points: []string{"abort.cleared", "abort.recorded"},
		before: func(t *testing.T, d *kit.Daemon) {
			created(t, d)
			dieAt(t, d, "launch.spawned", func(d *kit.Daemon) { d.TryHoldfast("start", "new") })
		},
		after: func(t *testing.T, d *kit.Daemon, _ string) {
			if got := status(d, "new"); got != "created" {
				t.Errorf("the container is %s", got)
			}
			serves(t, d)
		},
	},
	{
		name:   "restore after the shim and its container were killed",
		points: []string{"lose.cleared", "lose.told", "lose.recorded"},
		before: func(t *testing.T, d *kit.Daemon) {
			running(t, d)
			c := d.Inspect("new")
			d.Kill9()
			kit.Kill(t, kit.Shims(t, c.ID)[0])
			kit.Kill(t, c.State.Pid)
		},
		after: func(t *testing.T, d *kit.Daemon, _ string) {
			c := d.Inspect("new")
			before := c.State
			if before.Status != "exited" || before.ExitCode != 255 || !strings.Contains(before.Error, "exit code is unknown") {
				t.Errorf("%+v", before)
			}
			d.Kill9()
			d.Start()
			if again := d.Inspect("new").State; again.FinishedAt != before.FinishedAt || again.ExitCode != 255 || again.Status != "exited" {
				t.Errorf("was %+v, is %+v", before, again)
			}
			if n := count(events(t, d, time.Unix(1, 0), "container="+c.ID), "die"); n != 1 {
				t.Errorf("%d die events", n)
			}
			serves(t, d)
		},
	},
	{
		name:   "connect",
		points: []string{"network.recorded", "network.unlinked", "network.linked", "network.up", "network.changed"},
		before: func(t *testing.T, d *kit.Daemon) {
			running(t, d)
			d.Holdfast("network", "create", "--subnet", "10.62.7.0/24", "more")
		},
		do: func(d *kit.Daemon) { d.TryHoldfast("network", "connect", "--gw-priority", "1", "more", "new") },
		after: func(t *testing.T, d *kit.Daemon, _ string) {
			// The desired state was written, so the next daemon finishes the
			// operation.
			if got := d.Holdfast("inspect", "-f", "{{.NetworkSettings.Networks.more.IPAddress}}", "new"); got != "10.62.7.2" {
				t.Errorf("the address is %q", got)
			}
			if got := d.Holdfast("exec", "new", "ip", "-o", "-4", "addr", "show", "eth1"); !strings.Contains(got, "10.62.7.2/24") {
				t.Errorf("the interface has %q", got)
			}
			// Names are checked as well: the container's own name in its hosts
			// file, and names of others through the name server. The default
			// network has no name server.
			if got := d.Holdfast("exec", "new", "cat", "/etc/hosts"); !strings.Contains(got, "10.62.7.2\t") {
				t.Errorf("the hosts file is %q", got)
			}
			if got := d.Holdfast("exec", "new", "nslookup", "new.more", "127.0.0.11"); !strings.Contains(got, "10.62.7.2") {
				t.Errorf("the name server answered %q", got)
			}
			serves(t, d)
			d.Holdfast("network", "disconnect", "more", "new")
			// The container's address is free again.
			d.Holdfast("run", "--rm", "--network", "more", "--ip", "10.62.7.2", image, "true")
			d.Holdfast("network", "rm", "more")
			serves(t, d)
		},
	},
	{
		name:   "disconnect",
		points: []string{"network.recorded", "network.unlinked", "network.changed"},
		before: func(t *testing.T, d *kit.Daemon) {
			running(t, d)
			d.Holdfast("network", "create", "--subnet", "10.62.8.0/24", "more")
			d.Holdfast("network", "connect", "--gw-priority", "1", "more", "new")
		},
		do: func(d *kit.Daemon) { d.TryHoldfast("network", "disconnect", "more", "new") },
		after: func(t *testing.T, d *kit.Daemon, _ string) {
			if got := d.Holdfast("exec", "new", "sh", "-c", "ip -o -4 addr; cat /etc/hosts"); strings.Contains(got, "10.62.8.") {
				t.Errorf("the container still has the address %q", got)
			}
			d.Holdfast("run", "--rm", "--network", "more", "--ip", "10.62.8.2", image, "true")
			d.Holdfast("network", "rm", "more")
			serves(t, d)
			if got := d.Holdfast("exec", "new", "ip", "route"); !strings.Contains(got, "default via ") {
				t.Errorf("the container has no default route: %q", got)
			}
		},
	},
	{
		name:   "network create",
		points: []string{"network-create.recorded", "network-create.set-up"},
		before: running,
		do:     func(d *kit.Daemon) { d.TryHoldfast("network", "create", "--subnet", "10.62.9.0/24", "more") },
		after: func(t *testing.T, d *kit.Daemon, _ string) {
			// The record was written, so the next daemon must have the whole
			// network.
			d.Holdfast("run", "--rm", "--network", "more", "--ip", "10.62.9.7", image, "true")
			d.Holdfast("network", "rm", "more")
			noSubnet(t, "10.62.9.")
		},
	},
	{
		name:   "network rm",
		points: []string{"network-remove.recorded", "network-remove.torn-down"},
		before: func(t *testing.T, d *kit.Daemon) {
			running(t, d)
			d.Holdfast("network", "create", "--subnet", "10.62.10.0/24", "more")
		},
		do: func(d *kit.Daemon) { d.TryHoldfast("network", "rm", "more") },
		after: func(t *testing.T, d *kit.Daemon, _ string) {
			if r := d.TryHoldfast("network", "inspect", "more"); r.Code == 0 {
				t.Errorf("the network exists: %s", r.Stdout)
			}
			noSubnet(t, "10.62.10.")
			d.Holdfast("network", "create", "--subnet", "10.62.10.0/24", "more")
			d.Holdfast("network", "rm", "more")
		},
	},
	{
		name:   "build",
		points: []string{"build.recorded", "build.joined", "build.published", "build.released", "build.adopted", "build.named", "build.held"},
		before: func(t *testing.T, _ *kit.Daemon) { kit.Binary(t, "holdfast-build") },
		do:     buildBeside,
		after: func(t *testing.T, d *kit.Daemon, _ string) {
			ended, _ := building.Load(d)
			if failed := <-ended.(chan string); failed != "" {
				t.Fatalf("the build has noticed the daemon's end: %s", failed)
			}
			if got := d.Holdfast("run", "--rm", "built", "cat", "/file"); got != "made" {
				t.Errorf("the image has %q", got)
			}
			d.Holdfast("rmi", "built")
			kit.Eventually(t, "the step's network is removed", func() bool {
				left, _ := filepath.Glob(d.ExecRoot + "/build/net/*")
				return len(left) == 0
			})
		},
	},
	{
		name:   "replacement of a shim that was killed",
		points: []string{"replace.reserved", "replace.spawned"},
		before: running,
		do: func(d *kit.Daemon) {
			// The daemon notices the shim's death by itself, and dies while it
			// replaces the shim.
			if pid, err := strconv.Atoi(strings.TrimSpace(shimPid(d, "new"))); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		},
		after: func(t *testing.T, d *kit.Daemon, _ string) {
			kit.Eventually(t, "the container has a shim", func() bool { return len(kit.Shims(t, d.Inspect("new").ID)) == 1 })
			if got := status(d, "new"); got != "running" {
				t.Errorf("the container is %s", got)
			}
			serves(t, d)
		},
	},
}

// building are the builds that go on while their daemon is dead, by daemon.
var building sync.Map

// buildBeside starts a build that does not end with its daemon.
func buildBeside(d *kit.Daemon) {
	cmd := d.DockerCommand(context.Background(), "build", "-q", "--no-cache", "-t", "built", "-")
	cmd.Env = append(cmd.Env, "DOCKER_BUILDKIT=0")
	// Layers with the same content that are made within a second are the same layer, which
	// the store may have still from the build before. Nothing is adopted then.
	cmd.Stdin = strings.NewReader(fmt.Sprintf("FROM %s\nRUN echo made >/file; echo %d >/once\n", image, time.Now().UnixNano()))
	ended := make(chan string, 1)
	building.Store(d, ended)
	go func() {
		out, err := cmd.CombinedOutput()
		if err != nil {
			ended <- fmt.Sprintf("%v: %s", err, out)
		}
		close(ended)
	}()
}

// noSubnet checks that no interface of the host has an address in a subnet.
func noSubnet(t *testing.T, prefix string) {
	t.Helper()
	addrs, err := dump.Prefixes()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if strings.HasPrefix(a.String(), prefix) {
			t.Errorf("left behind: the address %s", a)
		}
	}
}

// shimPid is the process of a container's shim, as the daemon knows it.
func shimPid(d *kit.Daemon, name string) string {
	var status struct {
		Containers []struct {
			Name    string
			ShimPid int
		}
	}
	_ = json.Unmarshal([]byte(d.Holdfast("daemon", "status", "--format", "json")), &status)
	for _, c := range status.Containers {
		if c.Name == name {
			return strconv.Itoa(c.ShimPid)
		}
	}
	return ""
}

// dieAt runs an operation in which the daemon dies at a failpoint. The daemon
// is not restarted.
func dieAt(t *testing.T, d *kit.Daemon, point string, do func(*kit.Daemon)) {
	t.Helper()
	if d.Running() {
		d.Term()
	}
	d.SetEnv("HOLDFAST_FAILPOINT=" + point)
	defer d.SetEnv()
	err := d.TryStart()
	if do != nil {
		if err != nil {
			t.Fatal(err)
		}
		do(d)
	} else if err == nil && d.Running() {
		// The daemon may report that it is ready before it dies.
		d.WaitExit()
	}
	if do != nil {
		if code := d.WaitExit(); code != -1 {
			t.Fatalf("%s: the daemon did not die at the failpoint but exited with %d", point, code)
		}
	}
}

// The daemon dies at each failpoint of each operation. The next daemon finds
// the container complete or not at all, no resources are left over, and a
// neighbour container is unaffected.
func TestCrashInsideAnyOperationLeavesNothingHalfDone(t *testing.T) {
	t.Parallel()
	for _, s := range stories {
		t.Run(strings.ReplaceAll(s.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			d := live(t)
			p := kit.Probe(t, web(t, d, "neighbour"))
			p.WaitAnswer(t)
			before := identity(t, d, "neighbour")
			for _, point := range s.points {
				t.Run(point, func(t *testing.T) {
					s.before(t, d)
					dieAt(t, d, point, s.do)
					d.Start()
					s.after(t, d, point)
					if r := d.TryHoldfast("rm", "-f", "-v", "new"); r.Code != 0 && !strings.Contains(r.Stderr, "No such container") {
						t.Errorf("%+v", r)
					}
					if after := identity(t, d, "neighbour"); after != before {
						t.Errorf("the neighbour was %s and is %s", before, after)
					}
					if got := d.Holdfast("volume", "ls", "-q"); got != "" {
						t.Errorf("volumes are left: %s", got)
					}
					if got := strings.Fields(d.Holdfast("ps", "-aq")); len(got) != 1 {
						t.Errorf("containers: %v", got)
					}
					createdAndRemovedOnce(t, d)
					for _, pattern := range []string{d.DataRoot + "/containers/*", d.ExecRoot + "/shim/*"} {
						if files, _ := filepath.Glob(pattern); len(files) != 1 {
							t.Errorf("files: %v", files)
						}
					}
				})
				if t.Failed() {
					return // the next story would fail because of the leftovers
				}
			}
			noFailure(t, p)
		})
	}
}

// Every failpoint in the code has a story above, and every failpoint of a story
// exists in the code.
func TestEveryFailpointIsTested(t *testing.T) {
	names, err := kit.Failpoints()
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, name := range names {
		used[name] = true
	}
	tested := map[string]bool{}
	for _, s := range stories {
		for _, p := range s.points {
			tested[p] = true
			if !used[p] {
				t.Errorf("%s: the code has no failpoint %s", s.name, p)
			}
		}
	}
	// Those of the swarm process are reached in test/swarm.
	text, err := os.ReadFile("../swarm/failpoint_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`"((?:task|mesh)\.[a-z]+)"`).FindAllStringSubmatch(string(text), -1) {
		tested[m[1]] = true
		if !used[m[1]] {
			t.Errorf("test/swarm: the code has no failpoint %s", m[1])
		}
	}
	var missing []string
	for p := range used {
		if !tested[p] {
			missing = append(missing, p)
		}
	}
	slices.Sort(missing)
	if len(missing) > 0 {
		t.Errorf("no story covers the failpoints %v", missing)
	}
}
