// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"holdfast/test/kit"
)

// Rows of swarms whose nodes die.
const (
	rowFailoverTask   = swarmPrefix + "a node dies: until a replacement of its task runs elsewhere (ms)"
	rowFailoverLeader = swarmPrefix + "the leader of three managers dies: until another one accepts a change (ms)"
)

// managersOfFailover is the smallest number of managers of which one may die.
const managersOfFailover = 3

// fleet is a swarm of managers, which are hosts on one wire.
type fleet struct {
	t     testing.TB
	wire  kit.Netns
	hosts []kit.Netns
	nodes []*subject
}

// newFleet starts a swarm of managers.
func newFleet(t testing.TB) *fleet {
	t.Helper()
	f := &fleet{t: t, wire: kit.NewNetns(t)}
	f.must(f.wire.Run(func() error {
		br := netlink.NewLinkAttrs()
		br.Name = "wire"
		return errors.Join(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: br}), raise("wire", ""))
	}))
	var token string
	for i := range managersOfFailover {
		host := kit.NewNetns(t)
		f.hosts = append(f.hosts, host)
		f.must(f.wire.Run(func() error {
			br, err := netlink.LinkByName("wire")
			if err != nil {
				return err
			}
			cable := netlink.NewLinkAttrs()
			cable.Name, cable.MasterIndex = f.port(i), br.Attrs().Index
			return errors.Join(
				netlink.LinkAdd(&netlink.Veth{LinkAttrs: cable, PeerName: "cable", PeerNamespace: netlink.NsFd(int(host.File().Fd()))}),
				raise(f.port(i), ""))
		}))
		f.must(host.Run(func() error { return raise("cable", f.address(i)) }))
		n := &subject{engine: &holdfast{kit.New(t, kit.Options{LiveRestore: true, Disk: true}), t, host}}
		n.api, _ = connect(n.socket())
		n.start()
		if err := n.waitUp(); err != nil {
			t.Fatalf("%s does not answer: %v", n.name(), err)
		}
		n.api.must(t, "POST", "/images/load?quiet=1", kit.Archive(t, imageRef, kit.Image(t, kit.Busybox(t, nil), nil)), nil)
		addresses := map[string]any{"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": f.address(i)}
		if i == 0 {
			n.api.must(t, "POST", "/swarm/init", addresses, nil)
			var cluster struct{ JoinTokens struct{ Manager string } }
			n.api.must(t, "GET", "/swarm", nil, &cluster)
			token = cluster.JoinTokens.Manager
		} else {
			addresses["RemoteAddrs"], addresses["JoinToken"] = []string{f.address(0) + ":2377"}, token
			n.api.must(t, "POST", "/swarm/join", addresses, nil)
		}
		f.nodes = append(f.nodes, n)
	}
	return f
}

func (f *fleet) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fleet) port(i int) string    { return fmt.Sprintf("port%d", i) }
func (f *fleet) address(i int) string { return fmt.Sprintf("192.0.2.%d", i+1) }

// plug plugs the cable of a host in, or pulls it out, which is how its death looks to the
// others.
func (f *fleet) plug(i int, in bool) {
	f.t.Helper()
	f.must(f.wire.Run(func() error {
		link, err := netlink.LinkByName(f.port(i))
		if err != nil {
			return err
		}
		if in {
			return netlink.LinkSetUp(link)
		}
		return netlink.LinkSetDown(link)
	}))
}

// nodeState is what a manager says of a node.
type nodeState struct {
	ID            string
	Status        struct{ State, Addr string }
	ManagerStatus *struct {
		Leader       bool
		Reachability string
	}
}

// states asks a manager for all nodes. It returns nil if the manager does not answer.
func (f *fleet) states(by int) (all []nodeState) {
	if err := f.nodes[by].api.try("GET", "/nodes", nil, &all); err != nil {
		return nil
	}
	return all
}

// whole waits until a manager sees all nodes as they should be, and returns the leader.
func (f *fleet) whole(by int) (leader int) {
	f.t.Helper()
	f.until("the swarm is whole", func() bool {
		ready := 0
		leader = -1
		for _, n := range f.states(by) {
			if n.Status.State == "ready" && n.ManagerStatus != nil && n.ManagerStatus.Reachability == "reachable" {
				ready++
			}
			for i := range f.nodes {
				if n.ManagerStatus != nil && n.ManagerStatus.Leader && n.Status.Addr == f.address(i) {
					leader = i
				}
			}
		}
		return ready == len(f.nodes) && leader >= 0
	})
	return leader
}

// measureFailover measures how long a swarm lacks what a dead node had.
func measureFailover(t *testing.T, s scale, table *table) {
	f := newFleet(t)
	defer func() {
		for _, n := range f.nodes {
			_ = n.api.try("POST", "/swarm/leave?force=1", nil, nil)
		}
	}()
	var tasks, leaders []time.Duration
	for round := range s.few {
		if s.budget.done(round) {
			break
		}
		leader := f.whole(0)
		by := (leader + 1) % len(f.nodes)
		f.plug(leader, false)
		began := time.Now()
		attempt := 0
		f.until("another manager accepts a change", func() bool {
			attempt++ // one without an answer may have been accepted
			name := fmt.Sprintf("round%d-%d", round, attempt)
			return f.nodes[by].api.try("POST", "/configs/create", map[string]any{"Name": name, "Data": "eA=="}, nil) == nil
		})
		leaders = append(leaders, time.Since(began))
		f.plug(leader, true)

		// A node that is not the leader has the only task of a service.
		leader = f.whole(by)
		if !*full {
			break // the managers wait for a node for 15 seconds
		}
		dying := (leader + 1) % len(f.nodes)
		home := ""
		for _, n := range f.states(leader) {
			if n.Status.Addr == f.address(dying) {
				home = n.ID
			}
		}
		one := &service{t: t, api: f.nodes[leader].api, name: fmt.Sprintf("one%d", round)}
		one.begin(home)
		f.plug(dying, false)
		began = time.Now()
		f.until("a replacement runs", func() bool {
			return slices.ContainsFunc(one.tasks(), func(task task) bool { return task.NodeID != home })
		})
		tasks = append(tasks, time.Since(began))
		f.plug(dying, true)
		f.whole(leader)
		one.remove()
	}
	name := f.nodes[0].name()
	table.setAll(rowFailoverLeader, name, leaders)
	if len(tasks) > 0 {
		table.setAll(rowFailoverTask, name, tasks)
	}
}

// until polls until something is so.
func (f *fleet) until(what string, ok func() bool) {
	f.t.Helper()
	for late := time.After(2 * patience); !ok(); {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-late:
			f.t.Fatalf("not so: %s", what)
		}
	}
}
