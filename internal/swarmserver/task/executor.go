// SPDX-License-Identifier: Apache-2.0

// Package task runs the tasks of a swarm node as containers of the daemon: it is
// swarmkit's executor. Containers are made, started and removed by the daemon; they
// are observed, and stopped where no daemon lives, at their shims (package local). A
// container belongs to a task because the daemon has recorded the task's ID with it.
//
// No task fails because the daemon is dead. What needs a daemon waits for the next one.
package task

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/v2/daemon/cluster/convert"
	"github.com/moby/swarmkit/v2/agent"
	"github.com/moby/swarmkit/v2/agent/exec"
	"github.com/moby/swarmkit/v2/api"
	"github.com/moby/swarmkit/v2/log"
	"github.com/moby/swarmkit/v2/template"

	"holdfast/internal/swarmserver/local"
	"holdfast/internal/swarmserver/mesh"
)

// Mesh is the node's part in overlay networks. Without one on a task's list of
// networks the calls do nothing.
type Mesh interface {
	// Join gives a task its place on its networks. It waits for the daemon.
	Join(ctx context.Context, t *api.Task, name string) error
	// Started notes the network namespace of a task that is not healthy yet.
	Started(ctx context.Context, t *api.Task, name string, in mesh.Inside) error
	// Serve notes that a task is started and healthy. It is idempotent.
	Serve(ctx context.Context, t *api.Task, name, container string, in mesh.Inside) error
	// Drain takes a task out of all names and virtual addresses, before it is
	// stopped.
	Drain(ctx context.Context, task string)
	// Rest notes that the container of a place does not run, or is not on the network.
	Rest(t *api.Task)
	// Leave ends the place of a task whose container has ended.
	Leave(t *api.Task)
	SetKeys(keys []*api.EncryptionKey)
	// SetNode gets what the cluster has stored of this node.
	SetNode(n *api.Node)
	// Settled notes that all tasks of this node are known.
	Settled()
}

// Executor makes the controllers of tasks.
type Executor struct {
	engine  *Engine
	host    local.Host
	mesh    Mesh
	secrets string // the directory of secrets and configs
	exec.DependencyManager

	// mounting is held while the tmpfs at secrets is looked for and made.
	mounting sync.Mutex

	mu sync.Mutex
	// described is the last description of this node.
	described *api.NodeDescription
	// allocator and attachments are the part of package's attachment.go.
	allocator   func() agent.ResourceAllocator
	attachments map[string]*attachment // by task
	// open counts the controllers of each task that are not closed.
	open map[string]int
	// kept: the tasks of this node must not be touched.
	kept bool
	// complete is closed when the manager has sent all tasks of this node once.
	complete chan struct{}
}

// NewExecutor returns an executor over a daemon whose files are at host.
func NewExecutor(e *Engine, host local.Host, mesh Mesh, secretsDir string) *Executor {
	return &Executor{
		engine: e, host: host, mesh: mesh, secrets: secretsDir, DependencyManager: agent.NewDependencyManager(nil),
		open: map[string]int{}, attachments: map[string]*attachment{}, allocator: func() agent.ResourceAllocator { return nil }, complete: make(chan struct{}),
	}
}

// Keep makes the executor leave all tasks alone, while the node is stopped and started
// in this process: swarmkit removes the tasks of a node that stops.
//
// The node that starts then has forgotten the tasks, and gets them from the manager again:
// until then no container is an orphan.
func (x *Executor) Keep(on bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.kept, x.complete = on, make(chan struct{})
}

// completed is closed when the manager has sent all tasks of this run of the node.
func (x *Executor) completed() chan struct{} {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.complete
}

// errKept: the node stops without its tasks.
var errKept = errors.New("the tasks of this node go on")

// touch returns an error while tasks must be left alone.
func (x *Executor) touch() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.kept {
		return errKept
	}
	return nil
}

// describeTimeout bounds how long a session with a manager waits for the daemon's
// description of this host.
const describeTimeout = 5 * time.Second

// Describe returns what the scheduler needs to know of this node. While no daemon
// lives that is what the last one said.
func (x *Executor) Describe(ctx context.Context) (*api.NodeDescription, error) {
	ctx, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	info, err := x.engine.Info(ctx)
	x.mu.Lock()
	defer x.mu.Unlock()
	if err != nil {
		if x.described != nil {
			return x.described, nil
		}
		return nil, fmt.Errorf("describe this node: %w", err)
	}
	d := &api.NodeDescription{
		Hostname: info.Name,
		Platform: &api.Platform{Architecture: info.Architecture, OS: info.OSType},
		Engine:   &api.EngineDescription{EngineVersion: info.ServerVersion, Labels: map[string]string{}},
		Resources: &api.Resources{
			NanoCPUs: int64(info.NCPU) * 1e9, MemoryBytes: info.MemTotal, Generic: convert.GenericResourcesToGRPC(info.GenericResources),
		},
	}
	for _, label := range info.Labels {
		if key, value, ok := strings.Cut(label, "="); ok {
			d.Engine.Labels[key] = value
		}
	}
	for _, plugins := range []struct {
		kind  string
		names []string
	}{{"Log", info.Plugins.Log}, {"Network", append([]string{"overlay"}, info.Plugins.Network...)}, {"Volume", info.Plugins.Volume}} {
		for _, name := range slices.Compact(slices.Sorted(slices.Values(plugins.names))) {
			d.Engine.Plugins = append(d.Engine.Plugins, api.PluginDescription{Type: plugins.kind, Name: name})
		}
	}
	x.described = d
	return d, nil
}

// description is the last description, or nil.
func (x *Executor) description() *api.NodeDescription {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.described
}

// Configure gets what the cluster has stored of this node.
func (x *Executor) Configure(_ context.Context, n *api.Node) error {
	if n != nil {
		x.mesh.SetNode(n)
	}
	return nil
}

// SetNetworkBootstrapKeys gets the keys of the gossip.
func (x *Executor) SetNetworkBootstrapKeys(keys []*api.EncryptionKey) error {
	x.mesh.SetKeys(keys)
	return nil
}

// Secrets returns the secrets of this node. Their replacement as a whole is the
// beginning of a complete assignment.
func (x *Executor) Secrets() exec.SecretsManager {
	return noticedSecrets{x.DependencyManager.Secrets(), x.assigned}
}

type noticedSecrets struct {
	exec.SecretsManager
	reset func()
}

func (s noticedSecrets) Reset() {
	s.SecretsManager.Reset()
	s.reset()
}

func (x *Executor) assigned() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.isComplete() {
		close(x.complete)
	}
}

// Controller returns the controller of a task. It must not fail for what only a
// start of the task needs, because the task may run already.
func (x *Executor) Controller(t *api.Task) (exec.Controller, error) {
	if t.Spec.GetAttachment() != nil {
		return x.attachmentOf(t.Copy()), nil
	}
	if t.Spec.GetContainer() == nil {
		return nil, fmt.Errorf("this release runs containers only: %w", exec.ErrRuntimeUnsupported)
	}
	t = t.Copy()
	expanded, err := template.ExpandContainerSpec(x.describedOrEmpty(), t)
	if err != nil {
		return nil, err
	}
	t.Spec.Runtime = &api.TaskSpec_Container{Container: expanded}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.open[t.ID]++
	return &controller{
		x: x, task: t, closed: make(chan struct{}),
		dependencies: template.NewTemplatedDependencyGetter(agent.Restrict(x, t), t, x.described),
	}, nil
}

// describedOrEmpty is for templates, which read the node's name and platform.
func (x *Executor) describedOrEmpty() *api.NodeDescription {
	if d := x.description(); d != nil {
		return d
	}
	return &api.NodeDescription{Platform: &api.Platform{}}
}

// left notes that a controller is closed.
func (x *Executor) left(task string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.open[task]--; x.open[task] <= 0 {
		delete(x.open, task)
	}
}

const (
	// settle is the time between a complete assignment and the first sweep, in which
	// the controllers of its tasks are made.
	settle = 5 * time.Second
	// sweepEach is the time between two sweeps.
	sweepEach = time.Minute
)

// Sweep removes containers whose task is no longer known, until the context ends: an
// earlier process may have been killed after it had forgotten a task and before it had
// removed the container. It removes none before the manager has sent all tasks.
func (x *Executor) Sweep(ctx context.Context) {
	var last chan struct{}
	for {
		complete, next := x.completed(), sweepEach
		select {
		case <-ctx.Done():
			return
		case <-complete:
		}
		if complete != last {
			last, next = complete, settle
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		}
		if x.completed() != complete {
			continue
		}
		x.mesh.Settled()
		for _, c := range x.orphans() {
			if x.completed() != complete {
				break
			}
			log.G(ctx).Warnf("the container %s of the unknown task %s is removed", c.ID, c.Task)
			if err := x.engine.remove(ctx, c.ID); err != nil {
				log.G(ctx).Errorf("remove the container %s of an unknown task: %v", c.ID, err)
				continue
			}
			x.removeFiles(c.Task)
		}
		for _, task := range x.leftFiles() {
			x.removeFiles(task)
		}
	}
}

// isComplete reports whether the manager has sent all tasks of this node once. x.mu is
// held.
func (x *Executor) isComplete() bool {
	select {
	case <-x.complete:
		return true
	default:
		return false
	}
}

// orphans returns the containers of tasks without a controller. Containers are listed
// first: one that is created later has a controller already.
func (x *Executor) orphans() (orphans []*local.Container) {
	all, _ := x.host.All() // a record that can't be read is nobody's orphan
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.isComplete() {
		return nil
	}
	for _, c := range all {
		if x.open[c.Task] == 0 {
			orphans = append(orphans, c)
		}
	}
	return orphans
}
