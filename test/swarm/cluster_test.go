// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

// long plays the parts of the cluster's story that wait for a minute or more.
var long = flag.Bool("swarm.long", false, "play the long parts of the story of a cluster")

// cluster is a swarm of three managers and two workers.
type cluster struct {
	*hosts
	nodes  []*node
	before []map[string]life // by node
}

const managers = 3

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{hosts: wired(t, managers+2)}
	for i := range c.all {
		// A manager is missed after three seconds.
		c.nodes = append(c.nodes, prepare(t, kit.Options{Netns: c.all[i], LiveRestore: true, Config: map[string]any{"swarm-raft-election-tick": 3}}))
	}
	c.nodes[0].Docker("swarm", "init", "--advertise-addr", address(0))
	for i, n := range c.nodes[1:] {
		role, args := "manager", []string{"--advertise-addr", address(i + 1)}
		if i+1 >= managers {
			role, args = "worker", nil // its address may change
		}
		token := c.nodes[0].Docker("swarm", "join-token", "-q", role)
		n.Docker(append([]string{"swarm", "join", "--token", token, address(0) + ":2377"}, args...)...)
	}
	return c
}

// id is that of a node.
func (c *cluster) id(i int) string { return c.nodes[i].Docker("info", "-f", "{{.Swarm.NodeID}}") }

// ready waits until a manager sees all nodes as ready, and the managers as reachable.
func (c *cluster) ready(by int) {
	c.t.Helper()
	kit.Eventually(c.t, "all nodes are ready", func() bool {
		out := c.nodes[by].TryDocker("node", "ls", "--format", "{{.Status}} {{.ManagerStatus}}").Stdout
		return strings.Count(out, "Ready") == len(c.nodes) && strings.Count(out, "Reachable")+strings.Count(out, "Leader") == managers
	})
}

// leader is the node that a manager sees as the leader.
func (c *cluster) leader(by int) int {
	c.t.Helper()
	found := -1
	kit.Eventually(c.t, "there is a leader", func() bool {
		for line := range strings.Lines(c.nodes[by].TryDocker("node", "ls", "--format", "{{.ID}} {{.ManagerStatus}}").Stdout) {
			if id, ok := strings.CutSuffix(strings.TrimSpace(line), " Leader"); ok {
				found = slices.IndexFunc(c.nodes, func(n *node) bool { return n.Docker("info", "-f", "{{.Swarm.NodeID}}") == id })
			}
		}
		return found >= 0
	})
	return found
}

// note notes the containers of the nodes.
func (c *cluster) note() {
	c.before = nil
	for _, n := range c.nodes {
		c.before = append(c.before, n.lives())
	}
}

// untouched checks that the nodes have the containers that were noted, as they were.
func (c *cluster) untouched(what string) {
	c.t.Helper()
	for i, n := range c.nodes {
		if after := n.lives(); !maps.Equal(after, c.before[i]) {
			c.t.Errorf("%s: containers of node %d before\n%v\nand after\n%v", what, i, c.before[i], after)
		}
	}
}

// running checks that the containers that were noted of a node run, while no daemon can
// be asked.
func (c *cluster) running(what string, i int) {
	c.t.Helper()
	for name, l := range c.before[i] {
		if !kit.Alive(l.Pid) {
			c.t.Errorf("%s: container %s of node %d has ended", what, name, i)
		}
	}
}

// answers reports whether a manager answers soon.
func (n *node) answers() bool {
	ctx, cancel := context.WithTimeout(n.t.Context(), 2*time.Second)
	defer cancel()
	return n.Run(n.DockerCommand(ctx, "service", "ls")).Code == 0
}

// kill kills both processes of a node.
func (c *cluster) kill(i int) {
	n := c.nodes[i]
	pid := n.process()
	n.Kill9()
	if pid != 0 {
		kit.Kill(c.t, pid)
	}
}

// wait waits for a time in which nothing is to happen.
func (c *cluster) wait(d time.Duration) { <-time.After(d) }

// TestClusterOutlivesItsManagers is one story on one cluster, because the cluster takes
// most of the time.
func TestClusterOutlivesItsManagers(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	m := c.nodes[0]
	m.Docker("service", "create", "-d", "--name", "each", "--mode", "global", image, "sh", "-c", trap)
	for i := managers; i < len(c.nodes); i++ {
		m.Docker("node", "update", "--label-add", "kind=worker", c.id(i))
	}
	m.Docker("service", "create", "-d", "--name", "api", "--replicas", "2", "--constraint", "node.labels.kind==worker", image, "sh", "-c", trap)
	m.await("each", len(c.nodes))
	m.await("api", 2)
	c.ready(0)
	c.note()

	// A manager alone can do nothing, and the others choose another leader.
	first := c.leader(0)
	other := (first + 1) % managers
	c.plug(first, false)
	began := time.Now()
	next := 0
	kit.Eventually(t, "the others have a leader", func() bool { return c.nodes[other].answers() })
	t.Logf("another leader after %s", time.Since(began).Round(100*time.Millisecond))
	c.plug(first, true)
	c.ready(other)
	if next = c.leader(other); next == first {
		t.Errorf("the leader that was cut off is the leader again")
	}
	c.untouched("partition of the leader")

	// Two managers away: nothing can be changed, and everything runs.
	gone := []int{(next + 1) % managers, (next + 2) % managers}
	for _, i := range gone {
		c.kill(i)
		c.running("loss of quorum", i)
	}
	kit.Eventually(t, "the manager that is left says that it has no quorum", func() bool {
		r := c.nodes[next].TryDocker("service", "create", "-d", "--name", "late", image, "true")
		return r.Code != 0 && strings.Contains(r.Stderr, "too few managers are online")
	})
	for i := range managers {
		c.running("loss of quorum", i)
	}
	for _, i := range gone {
		c.nodes[i].Start()
	}
	c.ready(next)
	c.untouched("loss of quorum")
	// What was refused may have been accepted when the quorum returned: its log had it.
	if r := c.nodes[next].TryDocker("service", "create", "-d", "--name", "late", image, "true"); r.Code != 0 && !strings.Contains(r.Stderr, "already exists") {
		t.Errorf("after the return of the quorum: %s", r.Stderr)
	}
	c.nodes[next].Docker("service", "rm", "late")

	c.leaderEndsWithinAnUpdate()
	if *long {
		c.roleChanges()
		c.diskIsFull()
		c.addressChanges()
		c.keysChange()
	}
	c.workerIsAway()
	c.logIsCut()
	c.lastManagerGoesOn()
}

// roleChanges: a worker becomes a manager and a worker again.
func (c *cluster) roleChanges() {
	t, next := c.t, c.leader(0)
	t.Helper()
	w := managers
	c.nodes[next].Docker("node", "promote", c.id(w))
	kit.Eventually(t, "the worker is a manager", func() bool { return c.nodes[w].TryDocker("node", "ls").Code == 0 })
	c.nodes[next].Docker("node", "demote", c.id(w))
	kit.Eventually(t, "the manager is a worker", func() bool {
		return c.nodes[w].Docker("info", "-f", "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}") == "active false"
	})
	c.ready(next)
	c.untouched("promotion and demotion")
}

// leaderEndsWithinAnUpdate: the next leader goes on with an update. It replaces no task
// again of which it knows that it is new.
func (c *cluster) leaderEndsWithinAnUpdate() {
	t := c.t
	t.Helper()
	by := c.leader(0)
	c.nodes[by].Docker("service", "update", "-d", "--env-add", "V=2", "--update-delay", "500ms", "--update-monitor", "500ms", "--update-failure-action", "continue", "each")
	c.kill(by)
	other := (by + 1) % managers
	c.nodes[by].Start()
	last := ""
	kit.Eventually(t, "the update is complete", func() bool {
		last = c.nodes[other].TryDocker("service", "inspect", "each", "-f", "{{.UpdateStatus.State}} {{.UpdateStatus.Message}}").Stdout
		if strings.HasPrefix(last, "paused") {
			t.Fatalf("the update has failed: %s", last)
		}
		return strings.HasPrefix(last, "completed")
	})
	c.ready(other)
	c.nodes[other].await("each", len(c.nodes))
	// The next leader can't know of two nodes whether they have the new task already: the
	// former leader's own, which was away for a moment, and the one whose turn it was, which may
	// not have reported its new task yet.
	killed, twice := c.id(by), 0
	for id, states := range c.history(other, "each") {
		if len(states) == 3 && id != killed {
			twice++
		}
		if len(states) < 2 || len(states) > 3 || twice > 1 {
			t.Errorf("node %s has had the tasks %v, want two, or three on the killed node and on one other", id, states)
		}
	}
	c.note()
}

// history returns the states of all tasks of a global service, by node.
func (c *cluster) history(by int, service string) map[string][]swarm.TaskState {
	all := map[string][]swarm.TaskState{}
	for _, task := range c.nodes[by].tasks(service) {
		all[task.NodeID] = append(all[task.NodeID], task.Status.State)
	}
	return all
}

// diskIsFull: the other managers go on without one whose disk is full, and it joins them
// again when there is room.
func (c *cluster) diskIsFull() {
	t := c.t
	t.Helper()
	full := c.leader(0)
	root := c.nodes[full].Root // a tmpfs of its own
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		t.Fatal(err)
	}
	size := func(bytes uint64) {
		t.Helper()
		if err := unix.Mount("", root, "", unix.MS_REMOUNT, fmt.Sprintf("size=%d", bytes)); err != nil {
			t.Fatal(err)
		}
	}
	size((st.Blocks - st.Bfree) * uint64(st.Bsize))
	other := (full + 1) % managers
	// Configs are the cluster's, and each takes some room in the log.
	for i := range 20 {
		name := fmt.Sprintf("conf%d", i)
		kit.Eventually(t, "a manager with room accepts a change", func() bool {
			cmd := c.nodes[other].DockerCommand(t.Context(), "config", "create", name, "-")
			cmd.Stdin = strings.NewReader(strings.Repeat("x", 50_000))
			r := c.nodes[other].Run(cmd)
			return r.Code == 0 || strings.Contains(r.Stderr, "already exists")
		})
	}
	c.running("a full disk", full)
	size(0) // no limit
	c.ready(other)
	for i := range 20 {
		c.nodes[full].Docker("config", "rm", fmt.Sprintf("conf%d", i))
	}
	c.untouched("a full disk")
}

// workerIsAway: for a short time nothing happens, and for a longer one the scheduler
// replaces the tasks that may run elsewhere.
func (c *cluster) workerIsAway() {
	t, w := c.t, managers+1
	t.Helper()
	c.kill(w)
	c.wait(2 * time.Second)
	c.nodes[w].Start()
	c.ready(0)
	c.untouched("a worker away for two seconds")

	c.plug(w, false)
	id := c.id(w)
	kit.Eventually(t, "the node is down", func() bool {
		return strings.Contains(c.nodes[0].TryDocker("node", "ls", "--format", "{{.ID}} {{.Status}}").Stdout, id+" Down")
	})
	kit.Eventually(t, "the tasks are replaced", func() bool {
		n := 0
		for _, task := range c.nodes[0].running("api") {
			if task.NodeID != id && task.DesiredState == swarm.TaskStateRunning {
				n++
			}
		}
		return n == 2
	})
	c.running("a worker is cut off", w)
	c.plug(w, true)
	c.ready(0)
	kit.Eventually(t, "the tasks that were replaced are stopped", func() bool {
		return !slices.ContainsFunc(slices.Collect(maps.Keys(c.nodes[w].lives())), func(name string) bool { return strings.HasPrefix(name, "/api.") })
	})
	c.nodes[0].await("each", len(c.nodes))
	c.nodes[0].await("api", 2)
	for i, n := range c.nodes {
		for name, was := range c.before[i] {
			if now, there := n.lives()[name]; i != w && (!there || now != was) {
				t.Errorf("a container elsewhere was %v and is %v", was, now)
			}
		}
	}
	c.note()
	if *long {
		for _, i := range []int{c.leader(0), w} {
			c.kill(i)
			c.wait(5 * time.Minute)
			c.running("away for five minutes", i)
			c.nodes[i].Start()
			c.ready((i + 1) % managers)
			c.nodes[0].await("api", 2)
			c.note()
		}
	}
}

// addressChanges: a worker that was not told its address follows its host's.
func (c *cluster) addressChanges() {
	t, w := c.t, managers
	t.Helper()
	const to = "192.0.2.77"
	c.renumber(w, address(w), to)
	kit.Eventually(t, "the node is ready at its new address", func() bool {
		return c.nodes[0].TryDocker("node", "inspect", c.id(w), "-f", "{{.Status.State}} {{.Status.Addr}}").Stdout == "ready "+to+"\n"
	})
	if got := c.nodes[w].Docker("info", "-f", "{{.Swarm.NodeAddr}}"); got != to {
		t.Errorf("the node says that its address is %s", got)
	}
	c.ready(0)
	c.untouched("another address")
}

// keysChange: the certificates of all nodes, and the key that unlocks managers.
func (c *cluster) keysChange() {
	t := c.t
	t.Helper()
	certificate := func(n *node) string {
		text, err := os.ReadFile(n.DataRoot + "/swarm/certificates/swarm-node.crt")
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	var old []string
	for _, n := range c.nodes {
		old = append(old, certificate(n))
	}
	c.nodes[0].Docker("swarm", "ca", "--rotate", "-q")
	for i, n := range c.nodes {
		if certificate(n) == old[i] {
			t.Errorf("node %d has its old certificate", i)
		}
	}
	c.ready(0)
	c.untouched("rotation of the certificates")

	by := c.leader(0)
	c.nodes[by].Docker("swarm", "update", "--autolock")
	first := c.nodes[by].Docker("swarm", "unlock-key", "-q")
	c.nodes[by].Docker("swarm", "unlock-key", "--rotate", "-q")
	key := c.nodes[by].Docker("swarm", "unlock-key", "-q")
	if key == first {
		t.Error("the key is as it was")
	}
	locked := c.nodes[(by+1)%managers]
	kit.Eventually(t, "a manager is locked with the new key", func() bool {
		kit.Kill(t, locked.process())
		state := ""
		kit.Eventually(t, "the process answers", func() bool {
			state = locked.Docker("info", "-f", "{{.Swarm.LocalNodeState}}")
			return state == "locked" || state == "active"
		})
		return state == "locked" && locked.Run(stdin(locked, key+"\n", "swarm", "unlock")).Code == 0
	})
	c.ready(by)
	c.nodes[by].Docker("swarm", "update", "--autolock=false")
	c.untouched("keys of managers")
}

// logIsCut: the daemon of a manager whose log lacks something starts, its containers run,
// and the commands that it names heal it.
func (c *cluster) logIsCut() {
	t := c.t
	t.Helper()
	by := c.leader(0)
	broken := (by + 1) % managers
	n := c.nodes[broken]
	c.kill(broken)
	logs, err := filepath.Glob(n.DataRoot + "/swarm/raft/wal-v3-encrypted/*.wal")
	if err != nil || len(logs) == 0 {
		t.Fatalf("logs: %v %v", logs, err)
	}
	if err := os.Truncate(logs[len(logs)-1], 4096); err != nil {
		t.Fatal(err)
	}
	n.Start()
	c.running("a raft log cut short", broken)
	said := ""
	kit.Eventually(t, "the node says what to do", func() bool {
		said = n.Docker("info", "-f", "{{.Swarm.LocalNodeState}} {{.Swarm.Error}}")
		return strings.HasPrefix(said, "error") && strings.Contains(said, "docker node demote")
	})
	if aside, err := filepath.Glob(n.DataRoot + "/swarm/raft-damaged-*"); err != nil || len(aside) != 1 || !strings.Contains(said, aside[0]) {
		t.Errorf("set aside is %v, %v; the node says %q", aside, err, said)
	}
	if got := n.lives(); !maps.Equal(got, c.before[broken]) {
		t.Errorf("a raft log cut short: containers before\n%v\nand after\n%v", c.before[broken], got)
	}
	n.Kill9()
	n.Start()
	c.running("another start with the log aside", broken)

	id := strings.Fields(said[strings.Index(said, "docker node demote"):])[3]
	id = strings.Trim(id, `"`)
	c.nodes[by].Docker("node", "demote", id)
	c.nodes[by].Docker("node", "rm", "--force", id)
	n.Docker("swarm", "leave", "--force")
	token := c.nodes[by].Docker("swarm", "join-token", "-q", "manager")
	n.Docker("swarm", "join", "--token", token, "--advertise-addr", address(broken), address(by)+":2377")
	c.ready(by)
	c.nodes[by].await("each", len(c.nodes))
	c.nodes[by].await("api", 2)
	c.note()
}

// lastManagerGoesOn: of the managers only one is left, and makes a cluster of its own,
// with the same tasks.
func (c *cluster) lastManagerGoesOn() {
	t := c.t
	t.Helper()
	for i := 1; i < managers; i++ {
		c.kill(i)
	}
	m := c.nodes[0]
	m.Docker("swarm", "init", "--force-new-cluster", "--advertise-addr", address(0))
	kit.Eventually(t, "the workers are the new cluster's", func() bool {
		return strings.Count(m.TryDocker("node", "ls", "--format", "{{.Status}} {{.Availability}}").Stdout, "Ready") == 1+len(c.nodes)-managers
	})
	for _, i := range []int{0, managers, managers + 1} {
		after := c.nodes[i].lives()
		for name, was := range c.before[i] {
			if after[name] != was {
				t.Errorf("a new cluster: the container %s of node %d was %v and is %v", name, i, was, after[name])
			}
		}
	}
	for i := 1; i < managers; i++ {
		c.running("the managers of the former cluster", i)
		c.nodes[i].Start()
	}
	if out := fmt.Sprint(m.taskIDs("each")); !strings.Contains(out, "running") {
		t.Errorf("tasks of the new cluster: %s", out)
	}
}
