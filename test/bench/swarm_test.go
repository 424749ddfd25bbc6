// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"holdfast/test/kit"
)

// Rows of swarm mode.
const (
	rowSwarmStart   = swarmPrefix + "a service of %d replicas, until all run (ms)"
	rowSwarmUp      = swarmPrefix + "`service scale` from 1 to %d, until all run (ms)"
	rowSwarmDown    = swarmPrefix + "`service scale` from %d to 1, until one container is left (ms)"
	rowSwarmUpdate  = swarmPrefix + "`service update` of %d replicas, all at once, until the new tasks run (ms)"
	rowSwarmMemory  = swarmPrefix + "memory of the daemon and its swarm process, a manager (MB PSS)"
	rowSwarmMany    = swarmPrefix + "the same with %d services without tasks (MB PSS)"
	rowSwarmDirect  = swarmPrefix + "a request to the address of a task, on a new connection (µs)"
	rowSwarmVirtual = swarmPrefix + "a request to the virtual address of its service (µs)"
)

// crew is how many replicas and services are measured.
type crew struct{ replicas, scaled, updated, services, requests int }

func (s scale) crew() crew {
	if *full {
		return crew{replicas: 100, scaled: 50, updated: 20, services: 100, requests: 2000}
	}
	return crew{replicas: 3, scaled: 3, updated: 2, services: 3, requests: 50}
}

// newManager starts an engine in a namespace of its own, with a swarm of one node.
func newManager(t testing.TB, make func(kit.Netns) engine) *site {
	t.Helper()
	x := newSite(t, make)
	if x != nil && !t.Failed() {
		x.api.must(t, "POST", "/swarm/init", map[string]any{"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": hostAddress}, nil)
	}
	return x
}

// measureSwarm measures swarms of one node.
func measureSwarm(t *testing.T, s scale, table *table) {
	managers := []*site{newManager(t, func(ns kit.Netns) engine {
		return &holdfast{kit.New(t, kit.Options{LiveRestore: true, Prefix: 20, Disk: true}), t, ns}
	})}
	if beside() {
		// dockerd refuses a swarm with live restore.
		other := newManager(t, func(ns kit.Netns) engine {
			if d := newDockerd(t, ns, "--live-restore=false"); d != nil {
				return d
			}
			return nil
		})
		if other != nil {
			managers = append(managers, other)
		}
	}
	for _, x := range managers {
		defer x.api.try("POST", "/swarm/leave?force=1", nil, nil)
	}
	if t.Failed() {
		return
	}
	c := s.crew()
	memory := func(row string) {
		for _, x := range managers {
			settle(s, x.subject)
			table.set(row, x.name(), float64(pssOf(t, processesIn(x.host, append(x.programs(), "holdfast-swarm"))))/1024)
		}
	}
	memory(rowSwarmMemory)
	times := map[string]map[string][]time.Duration{}
	for round := range s.few {
		if s.budget.done(round) {
			break
		}
		for _, x := range managers {
			note := func(row string, fn func()) {
				if t.Failed() {
					return
				}
				begin := time.Now()
				fn()
				if times[row] == nil {
					times[row] = map[string][]time.Duration{}
				}
				times[row][x.name()] = append(times[row][x.name()], time.Since(begin))
			}
			many := &service{t: t, api: x.api, name: fmt.Sprintf("many%d", round)}
			note(fmt.Sprintf(rowSwarmStart, c.replicas), func() { many.create(c.replicas, nil); many.await(c.replicas) })
			many.remove()
			few := &service{t: t, api: x.api, name: fmt.Sprintf("few%d", round)}
			few.create(1, nil)
			few.await(1)
			note(fmt.Sprintf(rowSwarmUp, c.scaled), func() { few.update(c.scaled); few.await(c.scaled) })
			note(fmt.Sprintf(rowSwarmDown, c.scaled), func() { few.update(1); few.left(1) })
			few.update(c.updated)
			few.await(c.updated)
			note(fmt.Sprintf(rowSwarmUpdate, c.updated), func() { few.force++; few.update(c.updated); few.await(c.updated) })
			few.remove()
			if t.Failed() {
				return
			}
		}
	}
	for row, by := range times {
		for who, all := range by {
			table.setAll(row, who, all)
		}
	}
	measureVirtual(t, table, managers[0], c)
	for _, x := range managers {
		for i := range c.services {
			(&service{t: t, api: x.api, name: fmt.Sprintf("empty%d", i)}).create(0, nil)
		}
	}
	memory(fmt.Sprintf(rowSwarmMany, c.services))
}

// measureVirtual requests pages of a service in the network namespace of a container, by
// turns from one of its tasks and by its virtual address.
func measureVirtual(t *testing.T, table *table, x *site, c crew) {
	x.api.must(t, "POST", "/networks/create", map[string]any{"Name": "over", "Driver": "overlay"}, nil)
	web := &service{t: t, api: x.api, name: "web", command: []string{"sh", "-c", "mkdir /www; echo page > /www/index.html; exec httpd -f -p 80 -h /www"}}
	web.create(2, []string{"over"})
	web.await(2)
	client := &service{t: t, api: x.api, name: "client"}
	client.create(1, []string{"over"})
	client.await(1)
	if t.Failed() {
		return
	}
	var shown struct {
		Endpoint struct{ VirtualIPs []struct{ Addr string } }
	}
	x.api.must(t, "GET", "/services/web", nil, &shown)
	virtual, _, _ := strings.Cut(shown.Endpoint.VirtualIPs[0].Addr, "/")
	task := web.tasks()[0]
	direct, _, _ := strings.Cut(task.NetworksAttachments[0].Addresses[0], "/")
	ns := kit.NetnsOf(t, client.tasks()[0].Status.ContainerStatus.PID)
	took := map[string][]time.Duration{}
	for range c.requests {
		for row, addr := range map[string]string{rowSwarmDirect: direct, rowSwarmVirtual: virtual} {
			begin := time.Now()
			conn, err := dial(ns, addr+":80")
			if err == nil {
				_, err = io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n")
			}
			var page []byte
			if err == nil {
				page, err = io.ReadAll(conn)
				conn.Close()
			}
			if err != nil || !strings.HasSuffix(string(page), "page\n") {
				t.Errorf("%s: %v, %q", row, err, page)
				return
			}
			took[row] = append(took[row], time.Since(begin))
		}
	}
	for row, all := range took {
		table.set(row, x.name(), float64(median(all).Nanoseconds())/1000)
	}
	web.remove()
	client.remove()
}

// service is a service of a swarm.
type service struct {
	t       testing.TB
	api     *api
	name    string
	command []string // empty: a program that does nothing
	spec    map[string]any
	force   int // how often all its tasks were replaced
	// constraints are those of its tasks when it is created.
	constraints []string
}

// task is what is needed of an answer about a task.
type task struct {
	Status struct {
		State           string
		ContainerStatus struct{ PID int }
	}
	NodeID              string
	Spec                struct{ ForceUpdate int }
	NetworksAttachments []struct{ Addresses []string }
}

func (v *service) create(replicas int, networks []string) {
	v.t.Helper()
	if v.command == nil {
		v.command = []string{"sh", "-c", "trap exit TERM; while :; do sleep 1; done"}
	}
	var on []map[string]string
	for _, n := range networks {
		on = append(on, map[string]string{"Target": n})
	}
	v.spec = map[string]any{
		"Name": v.name, "Mode": map[string]any{"Replicated": map[string]any{"Replicas": replicas}},
		"UpdateConfig": map[string]any{"Parallelism": 0},
		"TaskTemplate": map[string]any{
			"ContainerSpec": map[string]any{"Image": imageRef, "Command": v.command, "StopGracePeriod": 0}, "Networks": on, "ForceUpdate": 0,
			"Placement": map[string]any{"Constraints": v.constraints},
		},
	}
	v.api.must(v.t, "POST", "/services/create", v.spec, nil)
}

// begin creates the service with one task on a node, which the next tasks are free to leave.
func (v *service) begin(node string) {
	v.t.Helper()
	v.constraints = []string{"node.id==" + node}
	v.create(1, nil)
	v.await(1)
	// A task stays that the new constraints allow, too.
	v.spec["TaskTemplate"].(map[string]any)["Placement"] = map[string]any{}
	v.update(1)
	v.await(1)
}

// update changes the number of replicas, and what else is new in the specification.
func (v *service) update(replicas int) {
	v.t.Helper()
	var shown struct{ Version struct{ Index int } }
	v.api.must(v.t, "GET", "/services/"+v.name, nil, &shown)
	v.spec["Mode"] = map[string]any{"Replicated": map[string]any{"Replicas": replicas}}
	v.spec["TaskTemplate"].(map[string]any)["ForceUpdate"] = v.force
	v.api.must(v.t, "POST", fmt.Sprintf("/services/%s/update?version=%d", v.name, shown.Version.Index), v.spec, nil)
}

// tasks returns the tasks that run and belong to the last update.
func (v *service) tasks() (running []task) {
	v.t.Helper()
	var all []task
	v.api.must(v.t, "GET", "/tasks?filters="+url.QueryEscape(fmt.Sprintf(`{"service":[%q],"desired-state":["running"]}`, v.name)), nil, &all)
	for _, one := range all {
		if one.Status.State == "running" && one.Spec.ForceUpdate == v.force {
			running = append(running, one)
		}
	}
	return running
}

// await waits until so many tasks run.
func (v *service) await(count int) {
	v.t.Helper()
	v.until(fmt.Sprintf("%d tasks", count), func() bool { return len(v.tasks()) == count })
}

// left waits until so many containers are left.
func (v *service) left(count int) {
	v.t.Helper()
	filter := url.QueryEscape(fmt.Sprintf(`{"label":["com.docker.swarm.service.name=%s"]}`, v.name))
	v.until(fmt.Sprintf("%d containers", count), func() bool {
		var all []struct{}
		v.api.must(v.t, "GET", "/containers/json?filters="+filter, nil, &all)
		return len(all) == count
	})
}

// until polls rarely, so that the polls are a small part of what is measured.
func (v *service) until(what string, ok func() bool) {
	v.t.Helper()
	for deadline := time.Now().Add(10 * patience); !ok() && !v.t.Failed(); {
		if time.Now().After(deadline) {
			v.t.Errorf("service %s does not come to %s", v.name, what)
		}
		<-time.After(50 * time.Millisecond)
	}
}

func (v *service) remove() {
	v.t.Helper()
	v.api.must(v.t, "DELETE", "/services/"+v.name, nil, nil)
	v.left(0)
}
