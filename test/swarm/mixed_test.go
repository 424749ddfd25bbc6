// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"fmt"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// dockerd starts a current dockerd on a host.
func (h *hosts) dockerd(i int) *node {
	h.t.Helper()
	p := kit.StartPeer(h.t, kit.PeerOptions{Netns: h.all[i]})
	p.Load(image, kit.Busybox(h.t, nil))
	h.t.Cleanup(func() { p.Docker("swarm", "leave", "--force") })
	return &node{Daemon: p.Daemon, t: h.t}
}

// join makes a daemon a worker in the swarm of a manager on the first host.
func (n *node) join(m *node, i int) {
	n.t.Helper()
	n.Docker("swarm", "join", "--token", m.Docker("swarm", "join-token", "-q", "worker"), "--advertise-addr", address(i), address(0)+":2377")
}

// TestNodesOfDockerAndOfHoldfastFormOneSwarm: either may be the manager. Tasks find each
// other by name and reach each other. Names lead to the addresses of tasks, because the
// virtual addresses of dockerd need a kernel with IPVS.
func TestNodesOfDockerAndOfHoldfastFormOneSwarm(t *testing.T) {
	t.Parallel()
	for _, manager := range []string{"Holdfast", "dockerd"} {
		t.Run("the manager is "+manager, func(t *testing.T) {
			t.Parallel()
			h := wired(t, 2)
			var m, w, ours *node
			if manager == "Holdfast" {
				m, w = h.manager(), h.dockerd(1)
				ours = m
			} else {
				m, w = h.dockerd(0), prepare(t, kit.Options{LiveRestore: true, Netns: h.all[1]})
				m.Docker("swarm", "init", "--advertise-addr", address(0))
				ours = w
			}
			w.join(m, 1)
			m.Docker("network", "create", "-d", "overlay", "over")
			m.Docker("service", "create", "-d", "--name", "web", "--mode", "global", "--network", "over", "--endpoint-mode", "dnsrr",
				"--hostname", "web-{{.Node.ID}}", image, "sh", "-c", hello)
			m.await("web", 2)
			all := map[string]bool{}
			for _, n := range []*node{m, w} {
				all["web-"+n.Docker("info", "-f", "{{.Swarm.NodeID}}")] = true
			}
			reach := func(when string) {
				t.Helper()
				for _, n := range []*node{m, w} {
					c := n.container("web")
					kit.Eventually(t, when+" each task reaches the tasks of both hosts", func() bool {
						met := map[string]bool{}
						for _, addr := range n.resolve(c, "tasks.web") {
							if name := n.get(c, "http://"+addr+"/"); all[name] {
								met[name] = true
							}
						}
						return len(met) == len(all)
					})
				}
			}
			reach("after the start")

			lives := fmt.Sprint(ours.lives())
			pid := ours.process()
			ours.Kill9()
			kit.Kill(t, pid)
			theirs := m
			if ours == m {
				theirs = w
			}
			c := theirs.container("web")
			for _, addr := range theirs.resolve(c, "tasks.web") {
				if name := theirs.get(c, "http://"+addr+"/"); !all[name] {
					t.Errorf("%s answers %q while Holdfast is dead", addr, name)
				}
			}
			ours.Start()
			kit.Eventually(t, "both nodes are ready", func() bool {
				return strings.Count(m.TryDocker("node", "ls", "--format", "{{.Status}}").Stdout, "Ready") == 2
			})
			reach("after a kill of Holdfast")
			if got := fmt.Sprint(ours.lives()); got != lives {
				t.Errorf("containers before\n%s\nand after\n%s", lives, got)
			}
			m.Docker("service", "rm", "web")
			m.Docker("network", "rm", "over")
			kit.Eventually(t, "dockerd has forgotten the service and its network", func() bool {
				return theirs.Docker("ps", "-aq") == "" && theirs.Docker("network", "ls", "-q", "--filter", "name=over") == ""
			})
		})
	}
}
