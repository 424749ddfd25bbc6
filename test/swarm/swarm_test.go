// SPDX-License-Identifier: Apache-2.0

// Package swarm tests swarm mode with Docker's own client, on nodes that are daemons
// in network namespaces of one machine.
package swarm

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

func TestMain(m *testing.M) {
	kit.Isolate(0)
	kit.Main(m)
}

const image = "busybox:latest"

// trap is a task's program that ends at once on SIGTERM.
const trap = "trap exit TERM; while :; do sleep 0.1; done"

// node is a daemon that can be in a swarm.
type node struct {
	*kit.Daemon
	t    *testing.T
	port int
	// nodeID is that in the cluster of a storm.
	nodeID string
}

// ports are those of managers, which all listen at 127.0.0.1 here.
var ports atomic.Int32

const firstPort = 23770

// prepare starts a daemon with an image. It leaves its swarm when the test ends.
func prepare(t *testing.T, o kit.Options) *node {
	t.Helper()
	kit.Binary(t, "holdfast-swarm")
	d := kit.New(t, o)
	n := &node{Daemon: d, t: t, port: firstPort + int(ports.Add(1))}
	d.Start()
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(d.ExecRoot + "/swarm/swarm.log")
			t.Logf("log of the swarm process:\n%s", text)
		}
		if !d.Running() {
			d.Start()
		}
		if strings.Contains(d.Docker("info", "-f", "{{.Swarm.LocalNodeState}}"), "inactive") {
			return
		}
		d.Docker("swarm", "leave", "--force")
	})
	d.Load(image, kit.Busybox(t, nil))
	return n
}

func (n *node) addr() string { return fmt.Sprintf("127.0.0.1:%d", n.port) }

// start is prepare, and a swarm of which the node is the manager.
func start(t *testing.T, o kit.Options) *node {
	t.Helper()
	n := prepare(t, o)
	n.Docker("swarm", "init", "--listen-addr", n.addr(), "--advertise-addr", n.addr())
	return n
}

// process returns the pid of the node's swarm process, or 0.
func (n *node) process() int {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		n.t.Fatal(err)
	}
	for _, path := range all {
		text, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(text), "holdfast-swarm\x00--data-root\x00"+n.DataRoot+"\x00") {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil && kit.Alive(pid) {
			return pid
		}
	}
	return 0
}

// tasks returns the tasks of a service, by the manager's API.
func (n *node) tasks(service string) (tasks []swarm.Task) {
	n.t.Helper()
	r := n.TryDocker("service", "ps", "-q", "--no-trunc", service)
	for _, id := range strings.Fields(r.Stdout) {
		var found []swarm.Task
		one := n.TryDocker("inspect", "--type", "task", id)
		if one.Code != 0 {
			continue // it was removed meanwhile
		}
		if err := json.Unmarshal([]byte(one.Stdout), &found); err != nil {
			n.t.Fatal(err)
		}
		tasks = append(tasks, found...)
	}
	return tasks
}

// running returns the tasks of a service that run.
func (n *node) running(service string) (tasks []swarm.Task) {
	for _, t := range n.tasks(service) {
		if t.Status.State == swarm.TaskStateRunning {
			tasks = append(tasks, t)
		}
	}
	return tasks
}

// await waits until a service has so many running tasks, and returns them.
func (n *node) await(service string, count int) (tasks []swarm.Task) {
	n.t.Helper()
	kit.Eventually(n.t, fmt.Sprintf("%d tasks of %s run", count, service), func() bool {
		tasks = n.running(service)
		return len(tasks) == count
	})
	return tasks
}

// life is what must not change of a container.
type life struct {
	ID      string
	Pid     int
	Started string
}

// lives returns those of the running containers of tasks.
func (n *node) lives() map[string]life {
	n.t.Helper()
	all := map[string]life{}
	for _, id := range strings.Fields(n.Docker("ps", "-q", "--no-trunc", "--filter", "label=com.docker.swarm.task")) {
		r := n.TryDocker("inspect", "--type", "container", id)
		var found []container.InspectResponse
		if r.Code != 0 {
			continue // it was removed meanwhile
		}
		if err := json.Unmarshal([]byte(r.Stdout), &found); err != nil {
			n.t.Fatal(err)
		}
		for _, c := range found {
			all[c.Name] = life{c.ID, c.State.Pid, c.State.StartedAt}
		}
	}
	return all
}

func TestServiceRunsScalesAndIsRemoved(t *testing.T) {
	t.Parallel()
	n := start(t, kit.Options{LiveRestore: true})
	if got := n.Docker("info", "-f", "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}} {{.Swarm.Managers}} {{.Swarm.Nodes}} {{.LiveRestoreEnabled}}"); got != "active true 1 1 true" {
		t.Errorf("info: %q", got)
	}
	n.Docker("service", "create", "-d", "--name", "web", "--replicas", "2", "--env", "SLOT={{.Task.Slot}}", image, "sh", "-c", "echo slot $SLOT; exec sleep 1000")
	n.await("web", 2)
	n.Docker("service", "scale", "-d", "web=3")
	tasks := n.await("web", 3)
	for _, task := range tasks {
		c := n.Inspect(task.Status.ContainerStatus.ContainerID)
		if want := fmt.Sprintf("/web.%d.%s", task.Slot, task.ID); c.Name != want || c.Config.Labels["com.docker.swarm.task.id"] != task.ID {
			t.Errorf("the container of task %s is called %s, want %s", task.ID, c.Name, want)
		}
		if c.State.Pid != task.Status.ContainerStatus.PID {
			t.Errorf("the manager knows pid %d of container %s, which has %d", task.Status.ContainerStatus.PID, c.Name, c.State.Pid)
		}
	}
	kit.Eventually(t, "the logs of all replicas are there", func() bool {
		logs := n.Docker("service", "logs", "web")
		return strings.Contains(logs, "slot 1") && strings.Contains(logs, "slot 2") && strings.Contains(logs, "slot 3")
	})
	n.Docker("service", "scale", "-d", "web=1")
	n.await("web", 1)
	n.Docker("service", "rm", "web")
	kit.Eventually(t, "the containers are removed", func() bool {
		return n.Docker("ps", "-aq", "--filter", "label=com.docker.swarm.task") == ""
	})
}

func TestTasksNeverNoticeTheEndOfTheProcesses(t *testing.T) {
	t.Parallel()
	n := start(t, kit.Options{LiveRestore: true})
	n.Docker("service", "create", "-d", "--name", "web", "--replicas", "3", image, "sh", "-c", trap)
	n.await("web", 3)
	before := n.lives()
	ids := fmt.Sprint(n.taskIDs("web"))
	for _, c := range []struct {
		name string
		end  func()
	}{
		{"daemon killed", func() { n.Kill9(); n.Start() }},
		{"swarm process killed", func() { kit.Kill(t, n.process()) }},
		{"both killed, the daemon first", func() { n.Kill9(); kit.Kill(t, n.process()); n.Start() }},
		{"both killed, the swarm process first", func() { kit.Kill(t, n.process()); n.Kill9(); n.Start() }},
		{"daemon restarted", func() { n.Restart() }},
		{"daemon taken over", func() { n.Takeover() }},
		{"live restore turned off and on by SIGHUP", func() { n.liveRestore(false); n.liveRestore(true) }},
		{"daemon killed after SIGHUP", func() { n.Kill9(); n.Start() }},
		{"daemon restarted after SIGHUP", func() { n.Restart() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.end()
			kit.Eventually(t, "the manager answers", func() bool { return n.TryDocker("service", "ls").Code == 0 })
			n.await("web", 3)
			if after := n.lives(); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("containers before\n%v\nand after\n%v", before, after)
			}
			if after := fmt.Sprint(n.taskIDs("web")); after != ids {
				t.Errorf("tasks before\n%v\nand after\n%v", ids, after)
			}
			kit.Eventually(t, "the node is ready", func() bool {
				return n.Docker("node", "ls", "--format", "{{.Status}} {{.ManagerStatus}}") == "Ready Leader"
			})
		})
	}
}

// Nobody else could run the tasks, so nothing is done to them however long the processes are
// away. The long form waits for five minutes each.
func TestTasksOfTheOnlyNodeOutliveALongDowntime(t *testing.T) {
	t.Parallel()
	n := start(t, kit.Options{LiveRestore: true})
	n.Docker("service", "create", "-d", "--name", "web", "--replicas", "2", image, "sh", "-c", trap)
	n.await("web", 2)
	before, ids := n.lives(), fmt.Sprint(n.taskIDs("web"))
	away := time.Second
	if *long {
		away = 5 * time.Minute
	}
	for _, c := range []struct {
		name string
		end  func()
	}{
		{"without a daemon", func() { n.Kill9() }},
		{"without any process", func() { pid := n.process(); n.Kill9(); kit.Kill(t, pid) }},
	} {
		c.end()
		<-time.After(away)
		for name, l := range before {
			if !kit.Alive(l.Pid) {
				t.Errorf("%s: %s has ended", c.name, name)
			}
		}
		n.Start()
		kit.Eventually(t, "the node is ready", func() bool {
			return n.TryDocker("node", "ls", "--format", "{{.Status}} {{.ManagerStatus}}").Stdout == "Ready Leader\n"
		})
		n.await("web", 2)
		if after := n.lives(); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("%s: containers before\n%v\nand after\n%v", c.name, before, after)
		}
		if after := fmt.Sprint(n.taskIDs("web")); after != ids {
			t.Errorf("%s: tasks before\n%v\nand after\n%v", c.name, ids, after)
		}
	}
}

// liveRestore turns live restore on or off without a restart.
func (n *node) liveRestore(on bool) {
	n.t.Helper()
	n.WriteConfig(map[string]any{"live-restore": on})
	n.Hup()
	if got := n.Docker("info", "-f", "{{.LiveRestoreEnabled}}"); got != fmt.Sprint(on) {
		n.t.Errorf("after SIGHUP live restore is %s, want %t", got, on)
	}
}

// taskIDs are those of all tasks of a service, also of ended ones.
func (n *node) taskIDs(service string) map[string]swarm.TaskState {
	all := map[string]swarm.TaskState{}
	for _, task := range n.tasks(service) {
		all[task.ID] = task.Status.State
	}
	return all
}

func TestExitsOfTheDowntimeAreReportedExactlyAndReplaced(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		before func(n *node)
		after  func(n *node)
	}{
		{"daemon dead", func(n *node) { n.Kill9() }, func(n *node) { n.Start() }},
		{"swarm process dead", func(n *node) { n.Kill9(); kit.Kill(n.t, n.process()) }, func(n *node) { n.Start() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := start(t, kit.Options{LiveRestore: true})
			dir := t.TempDir()
			n.Docker("service", "create", "-d", "--name", "web", "--restart-delay", "0s", "--mount", "type=bind,source="+dir+",target=/at",
				image, "sh", "-c", "while ! rm /at/end 2>/dev/null; do usleep 20000; done; exit 7")
			first := n.await("web", 1)[0]
			c.before(n)
			if err := os.WriteFile(dir+"/end", nil, 0o600); err != nil {
				t.Fatal(err)
			}
			kit.Eventually(t, "the container ends without the daemon", func() bool { return !kit.Alive(first.Status.ContainerStatus.PID) })
			c.after(n)
			kit.Eventually(t, "the manager answers", func() bool { return n.TryDocker("service", "ls").Code == 0 })
			kit.Eventually(t, "the task is replaced", func() bool {
				running := n.running("web")
				return len(running) == 1 && running[0].ID != first.ID
			})
			for _, task := range n.tasks("web") {
				if task.ID != first.ID {
					continue
				}
				if task.Status.State != swarm.TaskStateFailed || task.Status.ContainerStatus.ExitCode != 7 || !strings.Contains(task.Status.Err, "non-zero exit (7)") {
					t.Errorf("the task that ended is %+v", task.Status)
				}
				return
			}
			t.Error("the task that ended is unknown")
		})
	}
}

func TestWorkersJoinAndGetTasks(t *testing.T) {
	t.Parallel()
	m := start(t, kit.Options{LiveRestore: true})
	w := prepare(t, kit.Options{LiveRestore: true})
	token := m.Docker("swarm", "join-token", "-q", "worker")
	w.Docker("swarm", "join", "--token", token, "--listen-addr", w.addr(), "--advertise-addr", w.addr(), m.addr())
	if got := w.Docker("info", "-f", "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}"); got != "active false" {
		t.Errorf("the worker's info: %q", got)
	}
	if r := w.TryDocker("service", "ls"); r.Code == 0 || !strings.Contains(r.Stderr, "Worker nodes can't be used to view or modify cluster state") {
		t.Errorf("a worker answers for the cluster: %d %s", r.Code, r.Stderr)
	}
	m.Docker("service", "create", "-d", "--name", "each", "--mode", "global", image, "sh", "-c", trap)
	m.await("each", 2)
	before := w.lives()
	if len(before) != 1 {
		t.Fatalf("containers on the worker: %v", before)
	}
	ids := fmt.Sprint(m.taskIDs("each"))
	w.Kill9()
	kit.Kill(t, w.process())
	w.Start()
	kit.Eventually(t, "both nodes are ready", func() bool {
		return strings.Count(m.Docker("node", "ls", "--format", "{{.Status}}"), "Ready") == 2
	})
	if after := w.lives(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the worker's containers before\n%v\nand after\n%v", before, after)
	}
	if after := fmt.Sprint(m.taskIDs("each")); after != ids {
		t.Errorf("tasks before\n%v\nand after\n%v", ids, after)
	}

	id := w.Docker("info", "-f", "{{.Swarm.NodeID}}")
	m.Docker("node", "update", "--availability", "drain", id)
	kit.Eventually(t, "the worker is drained", func() bool { return len(w.lives()) == 0 })
	m.Docker("node", "update", "--availability", "active", id)
	m.await("each", 2)
	m.Docker("node", "promote", id)
	kit.Eventually(t, "the worker is a manager", func() bool { return w.TryDocker("node", "ls").Code == 0 })
	m.Docker("node", "demote", id)
	kit.Eventually(t, "the manager is a worker", func() bool {
		return w.Docker("info", "-f", "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}") == "active false"
	})
	w.Docker("swarm", "leave")
	if got := w.Docker("ps", "-aq"); got != "" {
		t.Errorf("containers of a node that has left: %s", got)
	}
	kit.Eventually(t, "the node is down", func() bool {
		return strings.Contains(m.Docker("node", "ls", "--format", "{{.ID}} {{.Status}}"), id+" Down")
	})
	m.Docker("node", "rm", id)
}

func TestSecretsAndConfigsAreInTheContainerAndOnNoDisk(t *testing.T) {
	t.Parallel()
	n := start(t, kit.Options{LiveRestore: true})
	n.DockerWith(strings.NewReader("s3cret-of-the-test"), "secret", "create", "word", "-")
	n.DockerWith(strings.NewReader("slot {{.Task.Slot}}"), "config", "create", "--template-driver", "golang", "conf", "-")
	n.Docker("service", "create", "-d", "--name", "web", "--secret", "source=word,target=w,mode=0400,uid=7", "--config", "source=conf,target=/etc/conf", image,
		"sh", "-c", "cat /run/secrets/w /etc/conf; stat -c ' %a %u' /run/secrets/w; exec sleep 1000")
	n.await("web", 1)
	kit.Eventually(t, "the container reads both", func() bool {
		return strings.Contains(n.Docker("service", "logs", "--raw", "web"), "s3cret-of-the-testslot 1 400 7")
	})
	found := ""
	err := filepath.WalkDir(n.DataRoot, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || strings.HasSuffix(path, "-json.log") {
			return nil
		}
		if text, err := os.ReadFile(path); err == nil && strings.Contains(string(text), "s3cret-of-the-test") {
			found = path
		}
		return nil
	})
	if err != nil || found != "" {
		t.Errorf("the secret is on the disk in %q: %v", found, err)
	}
	if r := n.TryDocker("secret", "rm", "word"); r.Code == 0 {
		t.Error("a secret in use can be removed")
	}
	n.Docker("service", "rm", "web")
	kit.Eventually(t, "the containers are removed", func() bool { return n.Docker("ps", "-aq") == "" })
	files := n.ExecRoot + "/swarm/secrets"
	kit.Eventually(t, "nothing is left of the secrets", func() bool {
		left, err := filepath.Glob(files + "/*")
		return err == nil && len(left) == 0
	})

	// Tasks that begin at once share one file system.
	n.Docker("service", "create", "-d", "--name", "many", "--replicas", "4", "--secret", "word", image, "sh", "-c", trap)
	for _, task := range n.await("many", 4) {
		if got := n.Docker("exec", task.Status.ContainerStatus.ContainerID, "cat", "/run/secrets/word"); got != "s3cret-of-the-test" {
			t.Errorf("the secret of task %s is %q", task.ID, got)
		}
	}
	if tasks := n.tasks("many"); len(tasks) != 4 {
		t.Errorf("tasks were replaced: %+v", tasks)
	}
	mounts := func() (at []string) {
		all, err := mountinfo.GetMounts(mountinfo.PrefixFilter(files))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all {
			at = append(at, m.Source+" "+m.Options)
		}
		return at
	}
	if got := mounts(); len(got) != 1 {
		t.Errorf("file systems of the secrets: %q", got)
	}
	n.Docker("service", "rm", "many")
	kit.Eventually(t, "the containers are removed", func() bool { return n.Docker("ps", "-aq") == "" })
	n.Docker("secret", "rm", "word")
	n.Docker("config", "rm", "conf")

	// An earlier release, or a process that was killed, may have left some of a swarm that
	// the host is no longer in.
	n.Docker("swarm", "leave", "--force")
	if got := mounts(); len(got) > 0 {
		t.Errorf("file systems of the secrets of a host that has left: %q", got)
	}
	n.Kill9()
	for range 2 {
		if err := unix.Mount("tmpfs", files, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	n.Start()
	if got := mounts(); len(got) > 0 {
		t.Errorf("the daemon leaves file systems of the secrets: %q", got)
	}
}

func TestServiceIsUpdatedRolledBackAndPublished(t *testing.T) {
	t.Parallel()
	n := start(t, kit.Options{LiveRestore: true})
	n.Docker("service", "create", "-d", "--name", "web", "--replicas", "2", "--update-monitor", "1s", "--stop-grace-period", "1s", "--env", "V=1", "--publish", "mode=host,target=80", image,
		"httpd", "-f", "-p", "80", "-h", "/www")
	n.await("web", 2)
	for _, task := range n.running("web") {
		ports := n.Docker("port", task.Status.ContainerStatus.ContainerID, "80")
		if len(task.Status.PortStatus.Ports) != 1 || !strings.HasSuffix(strings.Fields(ports)[0], fmt.Sprintf(":%d", task.Status.PortStatus.Ports[0].PublishedPort)) {
			t.Errorf("the manager knows %v, the host has %s", task.Status.PortStatus, ports)
		}
	}
	versions := func() string {
		return n.Docker("service", "inspect", "web", "-f", "{{.Spec.TaskTemplate.ContainerSpec.Env}} {{with .UpdateStatus}}{{.State}}{{end}}")
	}
	n.Docker("service", "update", "-d", "--env-add", "V=2", "web")
	kit.Eventually(t, "the service is updated", func() bool { return versions() == "[V=2] completed" })
	n.Docker("service", "rollback", "-d", "web")
	kit.Eventually(t, "the service is rolled back", func() bool { return versions() == "[V=1] rollback_completed" })
	n.await("web", 2)
	n.Docker("service", "create", "-d", "--name", "job", "--mode", "replicated-job", "--replicas", "2", image, "true")
	kit.Eventually(t, "the job is done", func() bool {
		return strings.Contains(n.Docker("service", "ls", "--filter", "name=job", "--format", "{{.Replicas}}"), "2/2 completed")
	})
}

func TestWhatIsNotThereIsRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	n := start(t, kit.Options{LiveRestore: true})
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"service", "create", "--network", "none", image}, "not found"},
		{[]string{"service", "create", "--network", "absent", image}, "not found"},
		{[]string{"network", "create", "-d", "overlay", "--opt", "encrypted", "over"}, "encrypted overlay networks are not part of this release"},
		{[]string{"network", "create", "-d", "macvlan", "--scope", "swarm", "over"}, "use the driver overlay"},
		{[]string{"volume", "create", "--driver", "csi", "--type", "mount", "vol"}, "cluster volumes are not part of this release: use"},
		{[]string{"service", "create", "--mount", "type=cluster,source=vol,target=/vol", image}, "cluster volumes are not part of this release: use"},
		{[]string{"swarm", "init", "--advertise-addr", n.addr()}, "This node is already part of a swarm"},
		{[]string{"swarm", "leave"}, "Removing the last manager erases all current state of the swarm"},
	} {
		if r := n.TryDocker(c.args...); r.Code == 0 || !strings.Contains(r.Stderr, c.want) {
			t.Errorf("docker %v: %d %s, want %q", c.args, r.Code, r.Stderr, c.want)
		}
	}
	for path, body := range map[string]string{
		"/volumes/create":  `{"Name":"vol","Driver":"csi","ClusterVolumeSpec":{"AccessMode":{"Scope":"single"}}}`,
		"/services/create": `{"Name":"csi","TaskTemplate":{"ContainerSpec":{"Image":"busybox","Mounts":[{"Type":"cluster","Source":"vol","Target":"/vol"}]}}}`,
	} {
		res, err := n.HTTP().Post("http://d"+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != http.StatusNotImplemented || !strings.Contains(string(text), "cluster volumes are not part of this release: use ") {
			t.Errorf("%s answers a cluster volume with %s %s", path, res.Status, text)
		}
	}
	n.Docker("service", "create", "-d", "--name", "plain", "--network", "host", image, "sh", "-c", trap)
	for _, task := range n.await("plain", 1) {
		if mode := n.Inspect(task.Status.ContainerStatus.ContainerID).HostConfig.NetworkMode; mode != "host" {
			t.Errorf("the task's network is %s", mode)
		}
	}
}

func TestHostInNoSwarmHasNoProcess(t *testing.T) {
	t.Parallel()
	n := prepare(t, kit.Options{})
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"service", "ls"}, "This node is not a swarm manager. Use"},
		{[]string{"swarm", "leave"}, "This node is not part of a swarm"},
	} {
		if r := n.TryDocker(c.args...); r.Code == 0 || !strings.Contains(r.Stderr, c.want) {
			t.Errorf("docker %v: %d %s, want %q", c.args, r.Code, r.Stderr, c.want)
		}
	}
	if pid := n.process(); pid != 0 {
		t.Errorf("there is a swarm process: %d", pid)
	}
	n.Docker("swarm", "init", "--listen-addr", n.addr(), "--advertise-addr", n.addr())
	n.Docker("swarm", "leave", "--force")
	kit.Eventually(t, "the process of a node that has left ends", func() bool { return n.process() == 0 })
	n.Restart()
	if pid := n.process(); pid != 0 {
		t.Errorf("the daemon starts a swarm process without a swarm: %d", pid)
	}
}

func TestLockedManagersTasksRunOn(t *testing.T) {
	t.Parallel()
	n := start(t, kit.Options{LiveRestore: true})
	n.Docker("service", "create", "-d", "--name", "web", image, "sh", "-c", trap)
	n.await("web", 1)
	before := n.lives()
	n.Docker("swarm", "update", "--autolock")
	key := n.Docker("swarm", "unlock-key", "-q")
	kit.Eventually(t, "the process is back and locked", func() bool {
		kit.Kill(t, n.process())
		locked := false
		kit.Eventually(t, "the process answers", func() bool {
			state := n.Docker("info", "-f", "{{.Swarm.LocalNodeState}}")
			locked = state == "locked"
			return locked || state == "active" // killed before the key was on the disk
		})
		return locked
	})
	if r := n.TryDocker("service", "ls"); r.Code == 0 || !strings.Contains(r.Stderr, "Swarm is encrypted and needs to be unlocked") {
		t.Errorf("a locked manager answers: %d %s", r.Code, r.Stderr)
	}
	if r := n.Run(stdin(n, "SWMKEY-1-xyz\n", "swarm", "unlock")); r.Code == 0 {
		t.Error("a wrong key unlocks")
	}
	if r := n.Run(stdin(n, key+"\n", "swarm", "unlock")); r.Code != 0 {
		t.Fatalf("unlock: %s", r.Stderr)
	}
	n.await("web", 1)
	if after := n.lives(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("containers before\n%v\nand after\n%v", before, after)
	}
}

// stdin is a command of the client with an input.
func stdin(n *node, text string, args ...string) *exec.Cmd {
	cmd := n.DockerCommand(context.Background(), args...)
	cmd.Stdin = strings.NewReader(text)
	return cmd
}

func TestNewClusterOfOneManagerKeepsItsTasks(t *testing.T) {
	t.Parallel()
	n := start(t, kit.Options{LiveRestore: true})
	n.Docker("service", "create", "-d", "--name", "web", image, "sh", "-c", trap)
	n.await("web", 1)
	before := n.lives()
	n.Docker("swarm", "init", "--force-new-cluster", "--listen-addr", n.addr(), "--advertise-addr", n.addr())
	n.await("web", 1)
	if after := n.lives(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("containers before\n%v\nand after\n%v", before, after)
	}
}

func TestWithoutLiveRestoreTasksStopWithTheDaemon(t *testing.T) {
	t.Parallel()
	n := start(t, kit.Options{LiveRestore: true})
	n.liveRestore(false)
	n.Docker("service", "create", "-d", "--name", "web", "--stop-grace-period", "1s", image, "sh", "-c", trap)
	first := n.await("web", 1)[0]
	n.Term()
	if pid := n.process(); pid != 0 {
		t.Errorf("the swarm process outlives its daemon: %d", pid)
	}
	if kit.Alive(first.Status.ContainerStatus.PID) {
		t.Error("the task outlives the daemon")
	}
	n.Start()
	kit.Eventually(t, "the task is replaced", func() bool {
		running := n.running("web")
		return len(running) == 1 && running[0].ID != first.ID
	})
}
