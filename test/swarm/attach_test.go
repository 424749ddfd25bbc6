// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"

	"holdfast/test/kit"
)

func TestPlainContainersUseAttachableNetworks(t *testing.T) {
	t.Parallel()
	h := wired(t, 2)
	m := h.manager()
	w := h.worker(1, m) // has no task, and so does not know the network by itself
	m.Docker("network", "create", "-d", "overlay", "--attachable", "over")
	m.Docker("network", "create", "-d", "overlay", "services")
	m.Docker("service", "create", "-d", "--name", "web", "--network", "over", "--constraint", "node.role==manager", "--hostname", "web", image, "sh", "-c", hello)
	m.await("web", 1)

	dir := t.TempDir()
	w.Docker("run", "-d", "--name", "plain", "--network", "over", "-v", dir+":/at", image, "sh", "-c", "until [ -f /at/go ]; do usleep 10000; done; "+loop)
	m.Docker("run", "-d", "--name", "other", "--hostname", "other", "--network", "over", "--network-alias", "alias", image, "sh", "-c", hello)
	answers := func(n *node, from, name, want string) {
		t.Helper()
		kit.Eventually(t, from+" reaches "+name, func() bool { return n.get(from, "http://"+name+"/") == want })
	}
	answers(w, "plain", "web", "web")
	for _, name := range []string{"other", "alias", "other.over"} {
		answers(w, "plain", name, "other")
	}
	if got := w.get("plain", "http://web/"); got != "web" {
		t.Errorf("the service answers %q", got)
	}
	w.Docker("run", "-d", "--name", "late", "--hostname", "late", image, "sh", "-c", hello)
	w.Docker("network", "connect", "over", "late")
	answers(w, "late", "other", "other")
	kit.Eventually(t, "a task reaches the container", func() bool { return m.get(m.container("web"), "http://late/") == "late" })
	if r := w.TryDocker("run", "--rm", "--network", "services", image, "true"); r.Code == 0 || !strings.Contains(r.Stderr, "not manually attachable") {
		t.Errorf("a network for services alone: %d %s", r.Code, r.Stderr)
	}
	if r := w.TryDocker("run", "--rm", "--network", "absent", image, "true"); r.Code == 0 || !strings.Contains(r.Stderr, "network absent not found") {
		t.Errorf("a network that is not there: %d %s", r.Code, r.Stderr)
	}

	// What is known of the network.
	var shown []network.Inspect
	kit.Eventually(t, "all are shown", func() bool {
		if err := json.Unmarshal([]byte(w.Docker("network", "inspect", "--verbose", "over")), &shown); err != nil {
			t.Fatal(err)
		}
		return len(shown) == 1 && len(shown[0].Services[""].Tasks) == 3 && len(shown[0].Services["web"].Tasks) == 1
	})
	if n := shown[0]; len(n.Peers) != 2 || n.Services["web"].Tasks[0].Info["Host IP"] != address(0) || !n.Services["web"].VIP.IsValid() || len(n.Containers) != 2 {
		t.Errorf("the network is shown as %+v", n)
	}

	// The containers notice nothing of the processes' ends.
	life := func(n *node, name string) string {
		c := n.Inspect(name)
		return fmt.Sprint(c.ID, c.State.Pid, c.State.StartedAt)
	}
	before := life(w, "plain") + life(m, "other")
	if err := os.WriteFile(dir+"/go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	served := func(since time.Time, d time.Duration) {
		t.Helper()
		kit.Eventually(t, "the container is served", func() bool {
			st, err := os.Stat(dir + "/ok")
			return err == nil && st.ModTime().Sub(since) > d
		})
	}
	for _, end := range []func(n *node){
		func(n *node) { n.Kill9(); n.Start() },
		func(n *node) { kit.Kill(t, n.process()) },
		func(n *node) { n.Kill9(); kit.Kill(t, n.process()); served(time.Now(), time.Second); n.Start() },
	} {
		end(w)
		end(m)
		kit.Eventually(t, "the manager answers", func() bool { return m.TryDocker("service", "ls").Code == 0 })
		served(time.Now(), time.Second)
		answers(w, "plain", "alias", "other")
	}
	if after := life(w, "plain") + life(m, "other"); after != before {
		t.Errorf("containers before\n%s\nand after\n%s", before, after)
	}
	if text, err := os.ReadFile(dir + "/failed"); err == nil {
		t.Errorf("requests failed:\n%s", text)
	}

	// A container that is started again has its address, also without a manager.
	ip := func() string {
		return w.Docker("inspect", "-f", "{{.NetworkSettings.Networks.over.IPAddress}}", "late")
	}
	was := ip()
	m.Kill9()
	kit.Kill(t, m.process())
	w.Docker("restart", "-t", "0", "late")
	if now := ip(); now != was {
		t.Errorf("the address was %s and is %s", was, now)
	}
	answers(w, "late", "other", "other")
	m.Start()
	kit.Eventually(t, "the manager answers", func() bool { return m.TryDocker("service", "ls").Code == 0 })
	answers(m, "other", "late", "late")

	// What is not used any more goes.
	w.Docker("network", "disconnect", "over", "late")
	if got := w.get("late", "http://"+m.Docker("inspect", "-f", "{{.NetworkSettings.Networks.over.IPAddress}}", "other")+"/"); got == "other" {
		t.Error("a disconnected container reaches the network")
	}
	kit.Eventually(t, "the name is gone", func() bool { return len(m.resolve("other", "late")) == 0 })
	if got := m.Docker("network", "prune", "-f"); strings.Contains(got, "over") || !strings.Contains(got, "services") {
		t.Errorf("prune removes %q", got)
	}
	m.Docker("service", "rm", "web")
	w.Docker("rm", "-f", "plain", "late")
	if r := m.TryDocker("network", "rm", "over"); r.Code == 0 {
		t.Error("a network with a container can be removed")
	}
	m.Docker("rm", "-f", "other")
	kit.Eventually(t, "the network can be removed", func() bool { return m.TryDocker("network", "rm", "over").Code == 0 })
}

func TestContainerStaysWhenItsHostLeavesTheSwarm(t *testing.T) {
	t.Parallel()
	n := wired(t, 1).manager()
	n.Docker("network", "create", "-d", "overlay", "--attachable", "over")
	n.Docker("run", "-d", "--name", "plain", "--network", "over", image, "sh", "-c", trap)
	n.Docker("create", "--name", "idle", "--network", "over", image, "true")
	for _, name := range []string{"plain", "idle"} {
		if got := n.Docker("inspect", "-f", "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}", name); strings.TrimSpace(got) != "over" {
			t.Errorf("%s is on the networks %s", name, got)
		}
	}
	before := n.Inspect("plain").State
	n.Docker("swarm", "leave", "--force")
	if after := n.Inspect("plain").State; after.Pid != before.Pid || after.StartedAt != before.StartedAt || !after.Running {
		t.Errorf("the container was %+v and is %+v", before, after)
	}
	if got := n.Docker("network", "ls", "--format", "{{.Name}}"); got != "bridge\nhost\nnone" {
		t.Errorf("networks of a host that has left: %q", got)
	}
	n.Docker("rm", "-f", "plain", "idle")
}

// The mesh needs no socket and no process, so the kernel would let both have the port.
func TestPortsOfTheMeshAndOfContainersExcludeEachOther(t *testing.T) {
	t.Parallel()
	h := wired(t, 1)
	n := h.manager()
	n.Docker("service", "create", "-d", "--name", "web", "-p", "8080:80", image, "sh", "-c", hello)
	n.await("web", 1)
	kit.Eventually(t, "the port is open", func() bool { return !strings.Contains(ask(h.all[0], "127.0.0.1:8080"), "refused") })
	refused := func(when string) {
		t.Helper()
		r := n.TryDocker("run", "--rm", "-p", "8080:80", image, "true")
		if r.Code == 0 || !strings.Contains(r.Stderr, "port is already allocated") || !strings.Contains(r.Stderr, "a service of the swarm publishes it") {
			t.Errorf("%s a container gets the port of a service: %d %s", when, r.Code, r.Stderr)
		}
	}
	refused("with a swarm process")
	kit.Kill(t, n.process())
	refused("after the end of the swarm process")
	n.Docker("run", "-d", "--name", "own", "-p", "8081:80", image, "sh", "-c", hello)
	create := func() kit.Result {
		return n.TryDocker("service", "create", "-d", "--name", "second", "-p", "8081:80", image, "sh", "-c", hello)
	}
	kit.Eventually(t, "the manager answers", func() bool { return n.TryDocker("service", "ls").Code == 0 })
	if r := create(); r.Code == 0 || !strings.Contains(r.Stderr, "port 8081/tcp is already in use on this node") {
		t.Errorf("a service gets the port of a container: %d %s", r.Code, r.Stderr)
	}
	if r := n.TryDocker("service", "update", "-d", "--publish-add", "8081:80", "web"); r.Code == 0 || !strings.Contains(r.Stderr, "port 8081/tcp is already in use on this node") {
		t.Errorf("an updated service gets the port of a container: %d %s", r.Code, r.Stderr)
	}
	n.Docker("service", "update", "-d", "--env-add", "V=2", "web") // its own port is no obstacle
	n.Docker("rm", "-f", "own")
	if r := create(); r.Code != 0 {
		t.Errorf("a port that is free again: %s", r.Stderr)
	}
	n.Docker("service", "rm", "web")
	kit.Eventually(t, "a container gets the port of a service that is gone", func() bool {
		return n.TryDocker("run", "--rm", "-p", "8080:80", image, "true").Code == 0
	})
}
