// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// arm starts new processes that die at the point, if it is not empty.
func (n *node) arm(point string) {
	n.t.Helper()
	n.Kill9()
	if pid := n.process(); pid != 0 {
		kit.Kill(n.t, pid)
	}
	n.SetEnv("HOLDFAST_FAILPOINT=" + point)
	n.Start()
	kit.Eventually(n.t, "the manager answers", func() bool { return n.TryDocker("service", "ls").Code == 0 })
}

// TestSwarmProcessDiesAtEachEdge kills the swarm process between the steps of a task,
// and the daemon after it. The next processes finish what was begun, once.
func TestSwarmProcessDiesAtEachEdge(t *testing.T) {
	t.Parallel()
	n := start(t, kit.Options{LiveRestore: true})
	containers := func() []string {
		return strings.Fields(n.Docker("ps", "-aq", "--no-trunc", "--filter", "label=com.docker.swarm.task"))
	}
	for _, c := range []struct {
		points []string
		begin  func() // before the processes die
		do     func()
		want   int // running tasks
	}{
		{[]string{"task.pulled", "task.created", "task.starting", "task.started"}, nil, func() {
			n.TryDocker("service", "create", "-d", "--name", "web", image, "sh", "-c", trap)
		}, 1},
		{[]string{"task.stopping", "task.removing"}, func() {
			n.Docker("service", "create", "-d", "--name", "web", "--stop-grace-period", "1s", image, "sh", "-c", trap)
			n.await("web", 1)
		}, func() { n.TryDocker("service", "rm", "web") }, 0},
	} {
		for _, point := range c.points {
			t.Run(point, func(t *testing.T) {
				if c.begin != nil {
					c.begin()
				}
				n.arm(point)
				pid := n.process()
				c.do()
				kit.Eventually(t, "the swarm process dies", func() bool { return n.process() != pid })
				n.arm("")
				if c.want > 0 {
					n.await("web", c.want)
				}
				kit.Eventually(t, fmt.Sprintf("%d containers are there", c.want), func() bool { return len(containers()) == c.want })
				if c.want > 0 {
					if all := n.taskIDs("web"); len(all) != c.want {
						t.Errorf("tasks: %v", all)
					}
					n.Docker("service", "rm", "web")
					kit.Eventually(t, "the containers are removed", func() bool { return len(containers()) == 0 })
				}
			})
		}
	}
}

// TestSwarmProcessDiesAtEachEdgeOfNetworks kills the swarm process, and the daemon after
// it, between what it changes of a network. A service beside is used all the time. What
// the next processes make of names, addresses and ports is right.
func TestSwarmProcessDiesAtEachEdgeOfNetworks(t *testing.T) {
	t.Parallel()
	h := wired(t, 1)
	n := h.manager()
	n.Docker("network", "create", "-d", "overlay", "over")
	n.Docker("network", "create", "-d", "overlay", "second")
	second := n.Docker("network", "inspect", "second", "-f", "{{.Id}}")
	dir := t.TempDir()
	n.Docker("service", "create", "-d", "--name", "web", "--network", "over", "--replicas", "2", image, "sh", "-c", hello)
	n.Docker("service", "create", "-d", "--name", "client", "--network", "over", "--mount", "type=bind,source="+dir+",target=/at",
		image, "sh", "-c", "until [ -f /at/go ]; do usleep 10000; done; "+loop)
	n.await("web", 2)
	n.await("client", 1)
	client := n.container("client")
	kit.Eventually(t, "the service answers", func() bool {
		return n.TryDocker("exec", client, "timeout", "5", "wget", "-qO-", "http://web/").Code == 0
	})
	before := n.lives()
	if err := os.WriteFile(dir+"/go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open := func() bool { return !strings.Contains(ask(h.all[0], "127.0.0.1:8090"), "refused") }
	create := func(network string) {
		n.TryDocker("service", "create", "-d", "--name", "new", "--network", network, "-p", "8090:80", "--replicas", "2", "--hostname", "new{{.Task.Slot}}", image, "sh", "-c", hello)
	}
	remove := func() { n.TryDocker("service", "rm", "new") }
	there := func() {
		n.await("new", 2)
		kit.Eventually(t, "both tasks answer to the service's name", func() bool { return n.allAnswer(client, "http://new/", 2) })
		kit.Eventually(t, "both tasks have a name", func() bool { return len(n.resolve(client, "tasks.new")) == 2 })
		kit.Eventually(t, "the port is open", open)
	}
	gone := func() {
		kit.Eventually(t, "the tasks are gone", func() bool { return len(n.lives()) == len(before) })
		kit.Eventually(t, "the names are gone", func() bool { return len(n.resolve(client, "new"))+len(n.resolve(client, "tasks.new")) == 0 })
		kit.Eventually(t, "the port is closed", func() bool { return !open() })
	}
	for _, c := range []struct {
		point      string
		begin, do  func() // before the processes die, and what they die of
		afterwards func()
	}{
		{"mesh.defined", nil, func() { create("over") }, there},
		{"mesh.applied", nil, func() { create("over") }, there},
		{"mesh.published", nil, func() { create("over") }, there},
		{"mesh.draining", func() { create("over"); there() }, remove, gone},
		{"mesh.forgotten", func() {
			n.Docker("service", "create", "-d", "--name", "other", "--network", "second", image, "sh", "-c", trap)
			n.await("other", 1)
		}, func() { n.TryDocker("service", "rm", "other") }, func() {
			kit.Eventually(t, "the network is gone from this host", func() bool {
				left, err := filepath.Glob(n.ExecRoot + "/overlay/" + second[:12] + "*")
				return err == nil && len(left) == 0
			})
			kit.Eventually(t, "the network can be removed", func() bool { return n.TryDocker("network", "rm", "second").Code == 0 })
		}},
	} {
		t.Run(c.point, func(t *testing.T) {
			if c.begin != nil {
				c.begin()
			}
			n.arm(c.point)
			pid := n.process()
			c.do()
			kit.Eventually(t, "the swarm process dies", func() bool { return n.process() != pid })
			n.arm("")
			c.afterwards()
			remove()
			gone()
		})
	}
	for name, was := range before {
		if now := n.lives()[name]; strings.HasPrefix(name, "/web.") && now != was {
			t.Errorf("%s was %v and is %v", name, was, now)
		}
	}
	if text, err := os.ReadFile(dir + "/failed"); err == nil {
		t.Errorf("requests failed:\n%s", text)
	}
	if left := n.Docker("network", "ls", "--format", "{{.Name}}"); slices.Contains(strings.Fields(left), "second") {
		t.Errorf("networks: %s", left)
	}
}
