// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"

	"holdfast/test/kit"
	"holdfast/test/swarm/model"
)

var (
	stormTime = flag.Duration("swarm.time", 0, "how long the storm of operations and faults takes; 0 is one short round")
	stormSeed = flag.Uint64("swarm.seed", 0, "the seed of the storm; 0 takes a new one")
)

const (
	// stepsOfRound are played before the swarm is judged.
	stepsOfRound = 4
	// The short round always plays the same step: a global service is made while both processes
	// of a manager are killed.
	shortSeed  = 5
	shortRound = 1
	// settling bounds how long a swarm takes after a round. The last update may have four
	// tasks, and a node that was away is down for a while.
	settling = 2 * time.Minute
	// answering bounds how long an operation waits for its answer.
	answering = 10 * time.Second
)

// versioned is a program that answers HTTP with the name and version of its service, and
// with the name of its host.
const versioned = `mkdir -p /www; echo "$S $V $(cat /etc/hostname)" > /www/index.html; httpd -p 80 -h /www; trap exit TERM; sleep 100000 & wait`

// stormy is a cluster beside its model.
type stormy struct {
	*cluster
	world  *model.World
	counts map[string]int // steps, by operation and fault
}

// api asks the API of a node.
func (n *node) api(path string, into any) error {
	ctx, cancel := context.WithTimeout(n.t.Context(), answering)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://d"+path, nil)
	if err != nil {
		return err
	}
	res, err := n.HTTP().Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, res.Status)
	}
	return json.NewDecoder(res.Body).Decode(into)
}

// filtered is a path with filters.
func filtered(path, filters string) string { return path + "?filters=" + url.QueryEscape(filters) }

// manager is a manager that answers, or -1.
func (s *stormy) manager() int {
	return slices.IndexFunc(s.nodes[:managers], func(n *node) bool { return n.Running() && n.answers() })
}

// command is the client's command of an operation.
func (s *stormy) command(step model.Step) []string {
	env := func() string { return "V=" + strconv.Itoa(step.To.Version) }
	order := []string{"--update-order", step.Order, "--rollback-order", step.Order}
	switch step.Op {
	case model.Create:
		args := []string{"service", "create", "-d", "--name", step.Service, "--network", "over", "--env", "S=" + step.Service, "--env", env(), "--restart-delay", "100ms", "--stop-grace-period", "2s",
			"--update-monitor", "200ms", "--update-failure-action", "continue", "--rollback-monitor", "200ms", "--rollback-failure-action", "continue", "--update-parallelism", "2"}
		if step.To.Global {
			args = append(args, "--mode", "global")
		} else {
			args = append(args, "--replicas", strconv.Itoa(step.To.Replicas))
		}
		return append(args, image, "sh", "-c", versioned)
	case model.Scale:
		return []string{"service", "scale", "-d", fmt.Sprintf("%s=%d", step.Service, step.To.Replicas)}
	case model.Update:
		return append(append([]string{"service", "update", "-d", "--env-add", env()}, order...), step.Service)
	case model.Rollback:
		return []string{"service", "rollback", "-d", step.Service}
	case model.Remove:
		return []string{"service", "rm", step.Service}
	case model.Force:
		return append(append([]string{"service", "update", "-d", "--force"}, order...), step.Service)
	case model.Drain:
		return []string{"node", "update", "--availability", "drain", s.ids()[step.Node]}
	default:
		return []string{"node", "update", "--availability", "active", s.ids()[step.Node]}
	}
}

// ids are those of the nodes.
func (s *stormy) ids() (ids []string) {
	for _, n := range s.nodes {
		ids = append(ids, n.nodeID)
	}
	return ids
}

// fault begins a fault, and returns what ends it.
func (s *stormy) fault(step model.Step) (end func()) {
	at := s.nodes[step.At]
	start := func(after time.Duration, all ...*node) func() {
		return func() {
			s.wait(after)
			for _, n := range all {
				n.Start()
			}
		}
	}
	switch step.Fault {
	case model.Daemon:
		at.Kill9()
		return start(0, at)
	case model.Process:
		kit.Kill(s.t, at.process())
	case model.Both:
		s.kill(step.At)
		return start(0, at)
	case model.Away:
		s.kill(step.At)
		return start(3*time.Second, at)
	case model.Restart:
		at.Term()
		return start(0, at)
	case model.Takeover:
		at.Takeover()
	case model.Cut, model.Gone:
		s.plug(step.At, false)
		return func() {
			if step.Fault == model.Gone {
				s.wait(25 * time.Second)
			}
			s.wait(3 * time.Second)
			s.plug(step.At, true)
		}
	case model.Quorum:
		var gone []*node
		for i := range managers {
			if i != step.At {
				s.kill(i)
				gone = append(gone, s.nodes[i])
			}
		}
		return start(3*time.Second, gone...)
	}
	return func() {}
}

// play plays a step, and waits until the swarm is whole.
func (s *stormy) play(step model.Step) {
	by := s.manager()
	if by < 0 {
		s.t.Fatal("no manager answers before the step")
	}
	// The operation goes to a manager that the fault leaves, and begins with the fault.
	if by == step.At && step.Fault != model.None && step.Fault != model.Quorum {
		by = (by + 1) % managers
	}
	if step.Moves() {
		s.updated()
	}
	args := s.command(step)
	var r kit.Result
	var asked sync.WaitGroup
	asked.Go(func() {
		ctx, cancel := context.WithTimeout(s.t.Context(), answering)
		defer cancel()
		r = s.nodes[by].Run(s.nodes[by].DockerCommand(ctx, args...))
	})
	s.fault(step)()
	asked.Wait()
	s.world.Played(step, r.Code == 0)
	answer := "answered"
	if r.Code != 0 {
		answer = "failed: " + strings.TrimSpace(r.Stderr)
	}
	s.t.Logf("%s: %s, %s", time.Now().Format(time.TimeOnly), step, answer)
	s.counts[step.Op]++
	s.counts["beside "+step.Fault]++
	s.whole()
}

// updated waits until no service is being updated; see model.Step.Moves.
func (s *stormy) updated() {
	kit.Eventually(s.t, "all updates are complete", func() bool {
		by := s.manager()
		var all []swarm.Service
		if by < 0 || s.nodes[by].api("/services", &all) != nil {
			return false
		}
		return !slices.ContainsFunc(all, func(one swarm.Service) bool {
			return one.UpdateStatus != nil && (one.UpdateStatus.State == swarm.UpdateStateUpdating || one.UpdateStatus.State == swarm.UpdateStateRollbackStarted)
		})
	})
}

// whole waits until all nodes are ready, as a manager says.
func (s *stormy) whole() {
	kit.Eventually(s.t, "all nodes are ready", func() bool {
		by := s.manager()
		if by < 0 {
			return false
		}
		out := s.nodes[by].TryDocker("node", "ls", "--format", "{{.Status}} {{.ManagerStatus}}").Stdout
		return strings.Count(out, "Ready") == len(s.nodes) && strings.Count(out, "Reachable")+strings.Count(out, "Leader") == managers
	})
}

// wanted reads the services and the drained nodes from a manager.
func (s *stormy) wanted() (services map[string]model.Service, drained []bool, err error) {
	by := s.manager()
	if by < 0 {
		return nil, nil, errors.New("no manager answers")
	}
	var all []swarm.Service
	var nodes []swarm.Node
	if err := errors.Join(s.nodes[by].api("/services", &all), s.nodes[by].api("/nodes", &nodes)); err != nil {
		return nil, nil, err
	}
	services = map[string]model.Service{}
	for _, one := range all {
		found := model.Service{Global: one.Spec.Mode.Global != nil, Version: versionOf(one.Spec.TaskTemplate.ContainerSpec.Env)}
		if r := one.Spec.Mode.Replicated; r != nil {
			found.Replicas = int(*r.Replicas)
		}
		services[one.Spec.Name] = found
	}
	drained = make([]bool, len(s.nodes))
	for _, n := range nodes {
		if i := slices.Index(s.ids(), n.ID); i >= 0 {
			drained[i] = n.Spec.Availability == swarm.NodeAvailabilityDrain
		}
	}
	return services, drained, nil
}

func versionOf(env []string) int {
	for _, one := range env {
		if text, ok := strings.CutPrefix(one, "V="); ok {
			version, _ := strconv.Atoi(text)
			return version
		}
	}
	return 0
}

// look sees the tasks and containers of the cluster.
func (s *stormy) look() (seen model.Seen, err error) {
	by := s.manager()
	if by < 0 {
		return seen, errors.New("no manager answers")
	}
	var tasks []swarm.Task
	var services []swarm.Service
	if err := errors.Join(s.nodes[by].api(filtered("/tasks", `{"desired-state":["running"]}`), &tasks), s.nodes[by].api("/services", &services)); err != nil {
		return seen, err
	}
	for _, t := range tasks {
		i := slices.IndexFunc(services, func(one swarm.Service) bool { return one.ID == t.ServiceID })
		if t.Status.State == swarm.TaskStateRunning && i >= 0 {
			seen.Tasks = append(seen.Tasks, model.Task{ID: t.ID, Service: services[i].Spec.Name, Slot: t.Slot, Node: slices.Index(s.ids(), t.NodeID)})
		}
	}
	for i, n := range s.nodes {
		var all []container.Summary
		if err := n.api(filtered("/containers/json", `{"label":["com.docker.swarm.task"]}`), &all); err != nil {
			return seen, err
		}
		for _, c := range all {
			var one container.InspectResponse
			if err := n.api("/containers/"+c.ID+"/json", &one); err != nil {
				return seen, err
			}
			seen.Boxes = append(seen.Boxes, model.Box{
				Task: c.Labels["com.docker.swarm.task.id"], Service: c.Labels["com.docker.swarm.service.name"], Node: i, Version: versionOf(one.Config.Env),
				Life: fmt.Sprint(one.ID[:12], one.State.Pid, one.State.StartedAt),
			})
		}
	}
	return seen, nil
}

// judge waits until the swarm is as it is wanted, and returns what is seen then.
func (s *stormy) judge(before model.Seen, touched model.Touched) (after model.Seen) {
	var wrong []string
	for late := time.After(settling); ; {
		services, drained, err := s.wanted()
		if err == nil {
			if lies := s.world.Learn(services, drained); len(lies) > 0 {
				s.t.Fatal(strings.Join(lies, "\n"))
			}
			after, err = s.look()
		}
		if err == nil {
			wrong = s.world.Judge(before, after, touched)
		} else {
			wrong = []string{err.Error()}
		}
		if len(wrong) == 0 {
			return after
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-late:
			s.t.Fatalf("within %s after the round:\n%s", settling, strings.Join(wrong, "\n"))
		}
	}
}

// names asks each service from each node that runs a task: by its name, which is its
// virtual address, and for the addresses of its tasks.
func (s *stormy) names(seen model.Seen) {
	count := map[string]int{}
	from := map[int]string{}
	for _, b := range seen.Boxes {
		count[b.Service]++
		from[b.Node] = b.Life[:12]
	}
	for i, c := range from {
		for name, service := range s.world.Services() {
			last := ""
			late := time.After(time.Minute)
			for !s.answered(i, c, name, service.Version, count[name], &last) {
				select {
				case <-time.After(500 * time.Millisecond):
				case <-late:
					s.t.Fatalf("on node %d %s with %d tasks of version %d does not answer as it should: %s", i, name, count[name], service.Version, last)
				}
			}
		}
	}
}

// answered asks a service in a container until each of its tasks has answered.
func (s *stormy) answered(i int, c, name string, version, tasks int, last *string) bool {
	script := fmt.Sprintf("nslookup tasks.%s | sed -n 's/^Address: *//p' | grep -v : | tr '\\n' ' '; echo; for i in $(seq %d); do timeout 3 wget -qO- http://%s/ || echo failed; done", name, 6*tasks, name)
	r := s.nodes[i].TryDocker("exec", c, "sh", "-c", script)
	*last = r.Stdout + r.Stderr
	lines := strings.Split(strings.TrimSpace(r.Stdout), "\n")
	met := map[string]bool{}
	for _, line := range lines[1:] {
		if !strings.HasPrefix(line, fmt.Sprintf("%s %d ", name, version)) {
			return false
		}
		met[line] = true
	}
	return len(met) == tasks && len(strings.Fields(lines[0])) == tasks
}

// TestStormOfOperationsAndFaults plays rounds of random operations beside random faults,
// and compares the swarm after each round with the model.
func TestStormOfOperationsAndFaults(t *testing.T) {
	t.Parallel()
	seed, steps := *stormSeed, stepsOfRound
	switch {
	case *stormTime == 0 && seed == 0:
		seed, steps = shortSeed, shortRound
	case seed == 0:
		seed = uint64(time.Now().UnixNano()) % 1e9
	}
	began := time.Now()
	t.Logf("SEED=%d plays this again", seed)
	s := &stormy{newCluster(t), model.New(managers+2, managers), map[string]int{}}
	for i, n := range s.nodes {
		n.nodeID = s.id(i)
	}
	s.nodes[0].Docker("network", "create", "-d", "overlay", "over")
	s.whole()
	var before model.Seen
	longest := time.Duration(0)
	for round := 0; round == 0 || time.Since(began)+longest < *stormTime; round++ {
		roundBegan := time.Now()
		r := rand.New(rand.NewPCG(seed, uint64(round)))
		var touched model.Touched
		for range steps {
			step := s.world.Next(r)
			touched.Touch(step)
			s.play(step)
		}
		played := time.Since(roundBegan)
		after := s.judge(before, touched)
		judged := time.Since(roundBegan)
		s.names(after)
		// The requests have taken a while, in which nothing was to happen.
		before = s.judge(after, model.Touched{})
		longest = max(longest, time.Since(roundBegan))
		t.Logf("round %d of SEED=%d: %d containers, %.1f s of steps, %.1f s to settle, %.1f s of requests", round, seed, len(before.Boxes), played.Seconds(), (judged - played).Seconds(), (time.Since(roundBegan) - judged).Seconds())
		if t.Failed() {
			t.Fatalf("round %d of SEED=%d has failed", round, seed)
		}
	}
	by := s.manager()
	for name := range s.world.Services() {
		s.nodes[by].Docker("service", "rm", name)
	}
	for i, n := range s.nodes {
		kit.Eventually(t, fmt.Sprintf("node %d has no container", i), func() bool { return n.Docker("ps", "-aq") == "" })
	}
	kit.Eventually(t, "the network can be removed", func() bool { return s.nodes[by].TryDocker("network", "rm", "over").Code == 0 })
	t.Logf("%s of SEED=%d: %v", time.Since(began).Round(time.Second), seed, s.counts)
}
