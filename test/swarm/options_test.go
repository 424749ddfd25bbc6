// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"strings"
	"testing"

	"holdfast/test/kit"
)

func TestOptionsOfTheDaemonReachTheSwarm(t *testing.T) {
	t.Parallel()
	conf := map[string]any{
		"live-restore": true, "node-generic-resources": []string{"gpu=UUID1", "ssd=3"},
		"swarm-default-advertise-addr": "lo", "swarm-raft-heartbeat-tick": 2, "swarm-raft-election-tick": 7,
	}
	n := prepare(t, kit.Options{LiveRestore: true, Config: conf})
	// lo has one address, and only this option makes the node choose that.
	n.Docker("swarm", "init", "--listen-addr", n.addr())
	if got := n.Docker("info", "-f", "{{.Swarm.NodeAddr}} {{.Swarm.Cluster.Spec.Raft.HeartbeatTick}} {{.Swarm.Cluster.Spec.Raft.ElectionTick}}"); got != "127.0.0.1 2 7" {
		t.Errorf("address and ticks: %s", got)
	}
	if got := n.Docker("node", "inspect", "self", "-f", "{{json .Description.Resources.GenericResources}}"); !strings.Contains(got, "UUID1") || !strings.Contains(got, `"ssd","Value":3`) {
		t.Errorf("resources: %s", got)
	}
	n.Docker("service", "create", "-d", "--name", "fits", "--generic-resource", "ssd=2", image, "sh", "-c", trap)
	before := n.await("fits", 1)
	n.Docker("service", "create", "-d", "--name", "waits", "--generic-resource", "ssd=2", image, "sh", "-c", trap)
	kit.Eventually(t, "the scheduler says why", func() bool {
		return strings.Contains(n.Docker("service", "ps", "--no-trunc", "--format", "{{.Error}}", "waits"), "insufficient resources")
	})

	// A daemon with another default replaces the process, and the task runs on.
	old := n.process()
	conf["swarm-default-advertise-addr"] = n.addr()[:strings.LastIndexByte(n.addr(), ':')]
	n.WriteConfig(conf)
	n.Kill9()
	n.Start()
	kit.Eventually(t, "another process runs", func() bool { p := n.process(); return p != 0 && p != old })
	if after := n.await("fits", 1); after[0].ID != before[0].ID {
		t.Errorf("the task was replaced: %s, before %s", after[0].ID, before[0].ID)
	}
}
