// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/test/kit"
)

// hello is a program that answers HTTP with the name of its host.
const hello = "mkdir -p /www; cat /etc/hostname > /www/index.html; exec httpd -f -p 80 -h /www"

// container returns the container of the only task of a service on a node.
func (n *node) container(service string) string {
	n.t.Helper()
	var ids []string
	kit.Eventually(n.t, "a task of "+service+" runs here", func() bool {
		ids = strings.Fields(n.Docker("ps", "-q", "--no-trunc", "--filter", "label=com.docker.swarm.service.name="+service))
		return len(ids) == 1
	})
	return ids[0]
}

// get fetches a page in a container. It returns what the server says, or the error.
func (n *node) get(container, url string) string {
	r := n.TryDocker("exec", container, "timeout", "5", "wget", "-qO-", url)
	return strings.TrimSpace(r.Stdout + r.Stderr)
}

// resolve returns the addresses of a name in a container, sorted.
func (n *node) resolve(container, name string) (addrs []string) {
	r := n.TryDocker("exec", container, "nslookup", name)
	_, answer, _ := strings.Cut(r.Stdout, "\n\n")
	for line := range strings.Lines(answer) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "Address:"); ok {
			addrs = append(addrs, strings.TrimSpace(text))
		}
	}
	slices.Sort(addrs)
	return slices.Compact(addrs)
}

// answering returns the servers that answer a number of requests.
func (n *node) answering(container, url string, requests int) map[string]int {
	n.t.Helper()
	all := map[string]int{}
	for range requests {
		all[n.get(container, url)]++
	}
	return all
}

// allAnswer returns whether a number of servers answer. A virtual address gives each
// server its turn, but other clients take turns, too, so that one client may meet the
// same server several times running.
func (n *node) allAnswer(container, url string, servers int) bool {
	n.t.Helper()
	met := map[string]bool{}
	for range 32 * servers {
		if r := n.TryDocker("exec", container, "timeout", "5", "wget", "-qO-", url); r.Code == 0 {
			met[strings.TrimSpace(r.Stdout)] = true
		}
		if len(met) == servers {
			return true
		}
	}
	n.t.Logf("%s is answered by %v, want %d servers", url, slices.Collect(maps.Keys(met)), servers)
	return false
}

func TestServicesOfOneNodeFindEachOtherByNameAndVirtualAddress(t *testing.T) {
	t.Parallel()
	n := wired(t, 1).manager()
	n.Docker("network", "create", "-d", "overlay", "--subnet", "10.99.0.0/24", "over")
	n.Docker("service", "create", "-d", "--name", "web", "--network", "name=over,alias=site", "--replicas", "2", "--hostname", "web{{.Task.Slot}}", image, "sh", "-c", hello)
	n.Docker("service", "create", "-d", "--name", "rr", "--network", "over", "--endpoint-mode", "dnsrr", "--replicas", "2", image, "sh", "-c", trap)
	n.Docker("service", "create", "-d", "--name", "client", "--network", "over", image, "sh", "-c", trap)
	n.await("web", 2)
	n.await("rr", 2)
	n.await("client", 1)
	c := n.container("client")

	vip, _, _ := strings.Cut(n.Docker("service", "inspect", "web", "-f", "{{(index .Endpoint.VirtualIPs 0).Addr}}"), "/")
	for _, name := range []string{"web", "site", "web.over"} {
		if got := fmt.Sprint(n.resolve(c, name)); got != "["+vip+"]" {
			t.Errorf("%s is %s, want %s", name, got, vip)
		}
	}
	for _, name := range []string{"tasks.web", "rr", "tasks.rr"} {
		if got := n.resolve(c, name); len(got) != 2 || slices.Contains(got, vip) {
			t.Errorf("%s is %v, want the addresses of two tasks", name, got)
		}
	}
	if got := n.answering(c, "http://web/", 20); len(got) != 2 || got["web1"] < 5 || got["web2"] < 5 {
		t.Errorf("20 requests to the virtual address were answered by %v", got)
	}
	task := n.running("web")[0]
	name := fmt.Sprintf("web.%d.%s", task.Slot, task.ID)
	if got, want := n.get(c, "http://"+name+"/"), fmt.Sprintf("web%d", task.Slot); got != want {
		t.Errorf("%s answers %q, want %q", name, got, want)
	}

	n.Docker("service", "scale", "-d", "web=1")
	n.await("web", 1)
	if got := n.answering(c, "http://site/", 10); len(got) != 1 || got["web1"] != 10 {
		t.Errorf("after the scaling down the requests were answered by %v", got)
	}
	if r := n.TryDocker("network", "rm", "over"); r.Code == 0 || !strings.Contains(r.Stderr, "in use") {
		t.Errorf("a network in use can be removed: %d %s", r.Code, r.Stderr)
	}
	for _, args := range [][]string{{"ls", "--filter", "driver=overlay", "--format", "{{.Name}} {{.Scope}}"}, {"inspect", "over", "-f", "{{.Name}} {{.Scope}}"}} {
		if got := n.Docker(append([]string{"network"}, args...)...); !strings.Contains(got, "over swarm") {
			t.Errorf("network %v: %q", args, got)
		}
	}
	n.Docker("service", "rm", "web", "rr", "client")
	kit.Eventually(t, "the network can be removed", func() bool { return n.TryDocker("network", "rm", "over").Code == 0 })
	if got := n.Docker("network", "ls", "-q", "--filter", "name=over", "--filter", "scope=swarm"); got != "" && n.TryDocker("network", "inspect", "over", "--format", "{{.Scope}}").Code != 0 {
		t.Errorf("the removed network is listed: %s", got)
	}
}

const composeFile = `
services:
  web:
    image: busybox:latest
    command: ["sh", "-c", "` + hello + `"]
    hostname: "web{{.Task.Slot}}"
    deploy:
      replicas: 2
  client:
    image: busybox:latest
    command: ["sh", "-c", "` + trap + `"]
`

func TestStackIsDeployedAsItComes(t *testing.T) {
	t.Parallel()
	n := wired(t, 1).manager()
	path := filepath.Join(t.TempDir(), "stack.yml")
	if err := os.WriteFile(path, []byte(composeFile), 0o600); err != nil {
		t.Fatal(err)
	}
	n.Docker("stack", "deploy", "-c", path, "s")
	n.await("s_web", 2)
	n.await("s_client", 1)
	c := n.container("s_client")
	if got := n.answering(c, "http://web/", 10); got["web1"] == 0 || got["web2"] == 0 || len(got) != 2 {
		t.Errorf("10 requests were answered by %v", got)
	}
	n.Docker("stack", "rm", "s")
	kit.Eventually(t, "the stack is gone", func() bool {
		return n.Docker("ps", "-aq") == "" && n.Docker("stack", "ls", "--format", "{{.Name}}") == ""
	})
}

// loop is a client that writes the time of each failed request, and of the last
// successful one.
const loop = "while :; do if timeout 3 wget -qO/dev/null http://web/; then date +%s > /at/ok; else date +%s >> /at/failed; fi; usleep 20000; done"

func TestTasksOfTwoHostsTalkWhileAllProcessesAreDead(t *testing.T) {
	t.Parallel()
	h := wired(t, 2)
	m := h.manager()
	w := h.worker(1, m)
	m.Docker("network", "create", "-d", "overlay", "over")
	m.Docker("service", "create", "-d", "--name", "web", "--mode", "global", "--network", "over", "--hostname", "web-{{.Node.ID}}", image, "sh", "-c", hello)
	m.await("web", 2)
	dir := t.TempDir()
	here := m.Docker("info", "-f", "{{.Swarm.NodeID}}")
	m.Docker("service", "create", "-d", "--name", "client", "--network", "over", "--constraint", "node.id=="+here, "--mount", "type=bind,source="+dir+",target=/at",
		image, "sh", "-c", "until [ -f /at/go ]; do usleep 10000; done; "+loop)
	m.await("client", 1)
	c := m.container("client")
	kit.Eventually(t, "the tasks of both hosts answer", func() bool { return m.allAnswer(c, "http://web/", 2) })
	if got := m.resolve(c, "tasks.web"); len(got) != 2 {
		t.Errorf("tasks.web is %v", got)
	}
	lives := func() string { return fmt.Sprint(m.lives(), w.lives()) }
	before, tasks := lives(), fmt.Sprint(m.taskIDs("web"))

	if err := os.WriteFile(dir+"/go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*node{m, w} {
		pid := n.process()
		n.Kill9()
		kit.Kill(t, pid)
	}
	dead := time.Now()
	kit.Eventually(t, "the client gets answers while no process lives", func() bool {
		st, err := os.Stat(dir + "/ok")
		return err == nil && st.ModTime().Sub(dead) > 10*time.Second
	})
	m.Start()
	w.Start()
	kit.Eventually(t, "both nodes are ready", func() bool {
		return strings.Count(m.TryDocker("node", "ls", "--format", "{{.Status}}").Stdout, "Ready") == 2
	})
	alive := time.Now()
	kit.Eventually(t, "the client gets answers after the start", func() bool {
		st, err := os.Stat(dir + "/ok")
		return err == nil && st.ModTime().Sub(alive) > 15*time.Second
	})
	if text, err := os.ReadFile(dir + "/failed"); err == nil {
		t.Errorf("requests failed, the processes were dead from %d to %d:\n%s", dead.Unix(), alive.Unix(), text)
	}
	if after := lives(); after != before {
		t.Errorf("containers before\n%s\nand after\n%s", before, after)
	}
	if after := fmt.Sprint(m.taskIDs("web")); after != tasks {
		t.Errorf("tasks before\n%s\nand after\n%s", tasks, after)
	}
	if !m.allAnswer(c, "http://web/", 2) {
		t.Error("after the start the tasks of both hosts do not answer")
	}
	m.Docker("service", "rm", "client", "web")
	kit.Eventually(t, "the containers are removed", func() bool { return m.Docker("ps", "-aq") == "" })
}

// A host's address is what other hosts send its tasks' packets to.
func TestTrafficFollowsAWorkersAddress(t *testing.T) {
	t.Parallel()
	h := wired(t, 2)
	m := h.manager()
	w := prepare(t, kit.Options{LiveRestore: true, Netns: h.all[1]})
	w.Docker("swarm", "join", "--token", m.Docker("swarm", "join-token", "-q", "worker"), address(0)+":2377")
	here, there := m.Docker("info", "-f", "{{.Swarm.NodeID}}"), w.Docker("info", "-f", "{{.Swarm.NodeID}}")
	m.Docker("network", "create", "-d", "overlay", "over")
	m.Docker("service", "create", "-d", "--name", "web", "--network", "over", "--constraint", "node.id=="+there, "--hostname", "web", image, "sh", "-c", hello)
	m.Docker("service", "create", "-d", "--name", "client", "--network", "over", "--constraint", "node.id=="+here, image, "sh", "-c", trap)
	m.await("web", 1)
	m.await("client", 1)
	c := m.container("client")
	answers := func() bool { return m.get(c, "http://web/") == "web" }
	kit.Eventually(t, "the service answers", answers)
	before := fmt.Sprint(m.lives(), w.lives())
	h.renumber(1, address(1), "192.0.2.77")
	kit.Eventually(t, "the service answers from the host's new address", answers)
	if got := w.Docker("info", "-f", "{{.Swarm.NodeAddr}}"); got != "192.0.2.77" {
		t.Errorf("the node says that its address is %s", got)
	}
	kit.Eventually(t, "the node is ready", func() bool {
		return m.Docker("node", "inspect", there, "-f", "{{.Status.State}} {{.Status.Addr}}") == "ready 192.0.2.77"
	})
	if after := fmt.Sprint(m.lives(), w.lives()); after != before {
		t.Errorf("containers before\n%s\nand after\n%s", before, after)
	}
}

// The other host hears nothing of the first one for longer than a gossip waits.
func TestTasksOfANodeWhoseProcessesAreDeadAreUsed(t *testing.T) {
	t.Parallel()
	h := wired(t, 3)
	m := h.manager()
	w := h.worker(1, m)
	here, there := m.Docker("info", "-f", "{{.Swarm.NodeID}}"), w.Docker("info", "-f", "{{.Swarm.NodeID}}")
	m.Docker("network", "create", "-d", "overlay", "over")
	m.Docker("service", "create", "-d", "--name", "web", "--network", "over", "-p", "8080:80", "--constraint", "node.id=="+here, image, "sh", "-c", who)
	dir := t.TempDir()
	m.Docker("service", "create", "-d", "--name", "client", "--network", "over", "--constraint", "node.id=="+there, "--mount", "type=bind,source="+dir+",target=/at",
		image, "sh", "-c", "until [ -f /at/go ]; do usleep 10000; done; "+strings.ReplaceAll(loop, "http://web/", "http://web/cgi-bin/who"))
	m.await("web", 1)
	m.await("client", 1)
	c := w.container("client")
	kit.Eventually(t, "the service answers", func() bool {
		return w.TryDocker("exec", c, "timeout", "5", "wget", "-qO-", "http://web/cgi-bin/who").Code == 0
	})
	mesh := func() bool { return strings.Contains(ask(h.all[2], address(1)+":8080"), address(2)) }
	kit.Eventually(t, "the port is open", mesh)
	if err := os.WriteFile(dir+"/go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	pid := m.process()
	m.Kill9()
	kit.Kill(t, pid)
	dead := time.Now()
	kit.Eventually(t, "the client gets answers for forty seconds", func() bool {
		st, err := os.Stat(dir + "/ok")
		return err == nil && st.ModTime().Sub(dead) > 40*time.Second
	})
	if !mesh() {
		t.Error("the published port of the other node does not lead to the task")
	}
	m.Start()
	kit.Eventually(t, "both nodes are ready", func() bool {
		return strings.Count(m.TryDocker("node", "ls", "--format", "{{.Status}}").Stdout, "Ready") == 2
	})
	if text, err := os.ReadFile(dir + "/failed"); err == nil {
		t.Errorf("requests failed, the processes were dead from %d:\n%s", dead.Unix(), text)
	}
	m.Docker("service", "rm", "client", "web")
	kit.Eventually(t, "the containers are removed", func() bool { return w.Docker("ps", "-aq") == "" })
}

// The other host sends no word of its end, and the client sends nothing that could be
// refused.
func TestIdleConnectionToATaskOfADeadHostEnds(t *testing.T) {
	t.Parallel()
	h := wired(t, 2)
	m := h.manager()
	w := h.worker(1, m)
	here, there := m.Docker("info", "-f", "{{.Swarm.NodeID}}"), w.Docker("info", "-f", "{{.Swarm.NodeID}}")
	m.Docker("network", "create", "-d", "overlay", "over")
	m.Docker("service", "create", "-d", "--name", "web", "--network", "over", "--constraint", "node.id=="+there, image, "nc", "-ll", "-p", "80", "-e", "cat")
	dir := t.TempDir()
	m.Docker("service", "create", "-d", "--name", "client", "--network", "over", "--constraint", "node.id=="+here, "--mount", "type=bind,source="+dir+",target=/at",
		image, "sh", "-c", "until echo hello | nc -w 2 web 80 | grep -q hello; do usleep 100000; done; mkfifo /in; (echo hello; exec sleep 1000) > /in & nc web 80 < /in > /at/answer; touch /at/ended; exec sleep 1000")
	exists := func(name string) bool {
		st, err := os.Stat(dir + "/" + name)
		return err == nil && (name != "answer" || st.Size() > 0)
	}
	kit.Eventually(t, "the client has an idle connection", func() bool { return exists("answer") })
	h.plug(1, false)
	began := time.Now()
	kit.Eventually(t, "the connection ends", func() bool { return exists("ended") })
	t.Logf("the connection has ended after %s", time.Since(began).Round(time.Second))
	h.plug(1, true)
	m.Docker("service", "rm", "client", "web")
	kit.Eventually(t, "the containers are removed", func() bool { return m.Docker("ps", "-aq") == "" })
}
