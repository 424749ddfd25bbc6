// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"context"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/executor/oci"
	"github.com/moby/buildkit/executor/resources"
	resources_types "github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/executor/runcexecutor"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/network"

	"holdfast/internal/build/stores"
)

// present is the daemon's configuration, which a reload may change at any time.
type present struct {
	remote *stores.Client
	mu     sync.Mutex
	last   stores.Config
}

// configTimeout bounds the wait for the configuration. A step that needs nothing else
// of the daemon does not wait for one that is dead.
const configTimeout = time.Second

// now asks the daemon, and returns what it answered last if there is none.
func (p *present) now(ctx context.Context) stores.Config {
	ctx, cancel := context.WithTimeout(ctx, configTimeout)
	defer cancel()
	conf, err := p.remote.Config(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.last = conf
	}
	return p.last
}

// stepExecutor runs RUN steps by the present configuration. It makes a new executor of
// BuildKit's when what an executor is made from has changed. It counts the steps.
type stepExecutor struct {
	present  *present
	at       places
	networks map[pb.NetMode]network.Provider
	monitor  *resources.Monitor
	steps    *steps
	parents  parents

	mu      sync.Mutex
	made    int
	of      stores.Config
	newest  executor.Executor
	running map[string]executor.Executor // by the ID of a step
}

// pick returns the executor for the present configuration.
func (e *stepExecutor) pick(conf stores.Config) (executor.Executor, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.newest != nil && reflect.DeepEqual(conf, e.of) {
		return e.newest, nil
	}
	if err := e.at.writeWrapper(conf.Runtime); err != nil {
		return nil, err
	}
	neutral := 0 // the process may have the daemon's own, which protects it
	made, err := runcexecutor.New(runcexecutor.Opt{
		OOMScoreAdj: &neutral,
		// Each has a directory of its own, because it removes the files of the one
		// before.
		Root: filepath.Join(e.at.executor, strconv.Itoa(e.made)), CommandCandidates: []string{e.at.wrapper}, DefaultCgroupParent: conf.CgroupParent,
		DNS:             &oci.DNSConfig{Nameservers: conf.DNS, Options: conf.Options, SearchDomains: conf.Search},
		ApparmorProfile: conf.AppArmor, ResourceMonitor: e.monitor,
	}, e.networks)
	if err != nil {
		return nil, err
	}
	e.made++
	e.newest, e.of = made, conf
	return made, nil
}

func (e *stepExecutor) Run(ctx context.Context, id string, root executor.Mount, mounts []executor.Mount, process executor.ProcessInfo, started chan<- struct{}) (resources_types.Recorder, error) {
	e.steps.add(1)
	defer e.steps.add(-1)
	conf := e.present.now(ctx)
	with, err := e.pick(conf)
	if err != nil {
		return nil, err
	}
	if id != "" {
		e.note(id, with)
		defer e.note(id, nil)
	}
	ctx, process.Meta.CgroupParent = networkIn(ctx, process.Meta.CgroupParent)
	if parent := process.Meta.CgroupParent; parent != "" && !strings.HasSuffix(parent, ":") { // not systemd's notation
		end, err := e.parents.use(parent)
		if err != nil {
			return nil, err
		}
		defer end()
	}
	return with.Run(context.WithValue(ctx, configKey{}, conf), id, root, mounts, process, started)
}

// note records which executor runs a step; nil is none.
func (e *stepExecutor) note(id string, with executor.Executor) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.running == nil {
		e.running = map[string]executor.Executor{}
	}
	if with == nil {
		delete(e.running, id)
		return
	}
	e.running[id] = with
}

func (e *stepExecutor) Exec(ctx context.Context, id string, process executor.ProcessInfo) error {
	e.mu.Lock()
	with := e.running[id]
	if with == nil {
		with = e.newest
	}
	e.mu.Unlock()
	return with.Exec(ctx, id, process)
}

// configKey has the configuration that a step is run by.
type configKey struct{}

func configOf(ctx context.Context) stores.Config {
	conf, _ := ctx.Value(configKey{}).(stores.Config)
	return conf
}
