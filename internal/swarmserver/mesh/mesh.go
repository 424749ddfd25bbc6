// SPDX-License-Identifier: Apache-2.0

// Package mesh is the part of a node in the overlay networks of its swarm. It makes the
// networks of the node's tasks known to the daemon, tells other nodes of the tasks by
// gossip, and turns what it learns into state that works without it: tables of the
// kernel for the addresses of other hosts, rules in the network namespace of each task
// for the virtual addresses of services, and files of names that shims answer from.
//
// It owns the directories overlay, names and services in <data-root>/swarm. Nothing is applied as
// an event: each change is followed by a comparison of what should be with what is. If
// the process dies, kernel and files stay as they are, and the next process removes
// nothing before it has heard of the other nodes again.
package mesh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/swarmkit/v2/api"
	"github.com/moby/swarmkit/v2/log"
	"github.com/vishvananda/netlink"

	"holdfast/internal/durable"
	"holdfast/internal/failpoint"
	"holdfast/internal/network/overlay"
	"holdfast/internal/network/overlay/kernel"
	"holdfast/internal/network/swarmlb"
)

const (
	// each is the time between two comparisons without a change. They repair what
	// other programs have changed.
	each = 30 * time.Second
	// merge is how long changes are collected before they are applied.
	merge = 20 * time.Millisecond
	// againAfter is the time until a comparison is repeated that had to leave something.
	againAfter = 200 * time.Millisecond
	// joinEach is the time between two attempts to meet other nodes.
	joinEach = 2 * time.Second
	// startEach is the time between two attempts to begin the gossip.
	startEach = 5 * time.Second
	// settleGossip is the time after which a gossip that knows other nodes is taken
	// as complete.
	settleGossip = 10 * time.Second
	// linger is for how long the endpoints of a node that has vanished are used in any
	// case: its swarm process may have been killed, and its tasks run on. Managers start
	// the tasks elsewhere after 15 seconds. Later those are used that answer within
	// askWithin, and they are asked again each askAgain.
	linger    = 20 * time.Second
	askAgain  = 5 * time.Second
	askWithin = 300 * time.Millisecond
	// spread is how long the gossip takes to inform the other nodes that a task is
	// about to end.
	spread = time.Second
	// unused is for how long a network stays on a node without tasks on it.
	unused = 3 * time.Second
)

// Daemon is what the mesh needs of the daemon. Each call waits for one.
type Daemon interface {
	// DefineOverlay makes a network known to the daemon.
	DefineOverlay(ctx context.Context, d overlay.Definition) error
	// ForgetOverlay removes a network. ErrPermissionDenied: containers are on it.
	ForgetOverlay(ctx context.Context, id string) error
	// Overlays returns the IDs of the networks that the daemon knows.
	Overlays(ctx context.Context) ([]string, error)
	// EnsureGateway makes the network by which containers reach other hosts.
	EnsureGateway(ctx context.Context) error
}

// Options are what New needs.
type Options struct {
	StateDir string // <data-root>/swarm
	Host     kernel.Host
	Daemon   Daemon
	// Where returns the addresses of this node. They are zero if the node is in no
	// swarm.
	Where func() Address
}

// Mesh is the node's part in the overlay networks. Its methods may be called by several
// goroutines.
type Mesh struct {
	o    Options
	kick chan struct{}

	// syncing is held during a comparison, and guards what only comparisons use. It
	// is taken before mu.
	syncing sync.Mutex
	gossip  *gossip
	failed  time.Time     // of the last attempt to begin the gossip
	ending  chan struct{} // closed when the former gossip has ended; nil: it has
	renewal renewal
	again   bool // the last comparison has to be repeated soon
	seen    map[string]map[string]*sighting
	files   map[string]string // contents of the written files
	idle    map[string]time.Time
	// What was behind the virtual addresses of each task and behind the published
	// ports at the last comparison.
	behind      map[string][]swarmlb.Service
	behindPorts *[]swarmlb.IngressPort
	reserved    reservations
	members     map[string][]member // by network, at the last comparison

	mu      sync.Mutex
	keys    []*api.EncryptionKey
	port    uint16 // UDP port of the tunnels; 0: 4789
	nets    map[string]overlay.Definition
	places  map[string]*place // by task
	entry   entry
	settled bool // the tasks of this node are known
}

// New returns the mesh of a node. Run does its work.
func New(o Options) *Mesh {
	m := &Mesh{
		o: o, kick: make(chan struct{}, 1), seen: map[string]map[string]*sighting{}, files: map[string]string{}, idle: map[string]time.Time{},
		behind: map[string][]swarmlb.Service{}, reserved: reservations{map[published]int{}, map[published]bool{}}, nets: map[string]overlay.Definition{}, places: map[string]*place{},
	}
	m.load()
	return m
}

// stateDir is the directory of the networks' state files.
func (m *Mesh) stateDir() string { return filepath.Join(m.o.StateDir, "overlay") }

// namesPath is the file of the names on a network.
func (m *Mesh) namesPath(network string) string {
	return filepath.Join(m.o.StateDir, "names", network+".json")
}

// servicesPath is the file of the services on a network.
func (m *Mesh) servicesPath(network string) string {
	return filepath.Join(m.o.StateDir, "services", network+".json")
}

// SetKeys sets the keys that the managers have sent.
func (m *Mesh) SetKeys(keys []*api.EncryptionKey) {
	m.mu.Lock()
	m.keys = slices.Clone(keys)
	m.mu.Unlock()
	m.Kick()
}

// Settled notes that all tasks of this node are known. Before that no network is
// removed.
func (m *Mesh) Settled() {
	m.mu.Lock()
	m.settled = true
	m.mu.Unlock()
}

// Kick asks for a comparison soon.
func (m *Mesh) Kick() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// Run compares after each change, and periodically, until the context ends.
func (m *Mesh) Run(ctx context.Context) {
	watchAddresses(ctx, m.Kick)
	timer := time.NewTimer(merge)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.kick:
			timer.Reset(merge)
			continue
		case <-timer.C:
		}
		m.sync(ctx)
		timer.Reset(m.next())
	}
}

// watchAddresses calls changed when an address of the host changes: this node's place may
// follow it.
func watchAddresses(ctx context.Context, changed func()) {
	changes := make(chan netlink.AddrUpdate)
	if err := netlink.AddrSubscribe(changes, ctx.Done()); err != nil {
		log.L.Warnf("changes of this host's addresses are noticed later: %v", err)
		return
	}
	go func() {
		for range changes {
			changed()
		}
	}()
}

// next is the time until the next comparison without a change. It is short while other
// nodes are to be met.
func (m *Mesh) next() time.Duration {
	a := m.o.Where()
	m.syncing.Lock()
	defer m.syncing.Unlock()
	if m.again {
		return againAfter
	}
	if a.Advertise != "" && (m.gossip == nil || len(m.gossip.missing(known(a, m.seen))) > 0) {
		return joinEach
	}
	if len(m.idle) > 0 {
		return joinEach
	}
	for _, net := range m.seen {
		for _, s := range net {
			if !s.live {
				return joinEach // its time to linger ends without a change that would be noticed
			}
		}
	}
	return each
}

// Reset forgets all: the node has left its swarm.
func (m *Mesh) Reset(ctx context.Context) error {
	m.syncing.Lock()
	defer m.syncing.Unlock()
	if m.gossip != nil {
		m.gossip.close()
		m.gossip = nil
	}
	m.renewal = renewal{}
	m.mu.Lock()
	m.keys, m.settled, m.entry = nil, false, entry{}
	clear(m.nets)
	clear(m.places)
	m.mu.Unlock()
	clear(m.seen)
	clear(m.files)
	clear(m.idle)
	clear(m.behind)
	m.behindPorts, m.members = nil, nil
	m.reserved.set(nil)
	ids, err := m.o.Daemon.Overlays(ctx)
	err = errors.Join(err, endEntry(m.o.Host, ids))
	for _, id := range ids {
		err = errors.Join(err, m.o.Daemon.ForgetOverlay(ctx, id))
	}
	return err
}

// stored is the state of a network as it is stored.
type stored struct {
	Schema     int                `json:"schema"`
	Definition overlay.Definition `json:"definition"`
	// Members are the endpoints that were known last, by key.
	Members map[string]member `json:"members"`
}

// load reads what an earlier process knew. What can't be read is learnt
// again.
func (m *Mesh) load() {
	paths, _ := filepath.Glob(filepath.Join(m.stateDir(), "*.json"))
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var s stored
		if err := json.Unmarshal(text, &s); err != nil || s.Definition.ID == "" {
			log.L.Warnf("%s can't be used, and is learnt again: %v", path, err)
			continue
		}
		m.nets[s.Definition.ID] = s.Definition
		seen := map[string]*sighting{}
		for key, member := range s.Members {
			seen[key] = &sighting{member: member, last: time.Now()}
		}
		m.seen[s.Definition.ID] = seen
	}
}

// write replaces a file if its content has changed.
func (m *Mesh) write(path string, v any, mode os.FileMode) error {
	text, err := json.Marshal(v)
	if err != nil || m.files[path] == string(text) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := durable.WriteFile(path, text, mode); err != nil {
		return err
	}
	m.files[path] = string(text)
	return nil
}

// forget removes a network that no task of this node is on.
func (m *Mesh) forget(ctx context.Context, id string) error {
	if err := m.o.Daemon.ForgetOverlay(ctx, id); err != nil && !notFound(err) {
		return fmt.Errorf("remove network %s from this node: %w", id, err)
	}
	failpoint.Here("mesh.forgotten")
	if m.gossip != nil {
		m.gossip.leave(id)
	}
	m.mu.Lock()
	delete(m.nets, id)
	m.mu.Unlock()
	delete(m.seen, id)
	delete(m.idle, id)
	for _, path := range []string{filepath.Join(m.stateDir(), id+".json"), m.namesPath(id), m.servicesPath(id)} {
		delete(m.files, path)
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// snapshot is what a comparison works on.
type snapshot struct {
	address Address
	keys    []*api.EncryptionKey
	nets    map[string]overlay.Definition
	places  []place
	entry   entry
	settled bool
}

func (m *Mesh) snapshot() snapshot {
	address := m.o.Where()
	m.mu.Lock()
	defer m.mu.Unlock()
	s := snapshot{address: address, keys: m.keys, nets: maps.Clone(m.nets), entry: m.entry, settled: m.settled}
	for task, p := range m.places {
		if !p.left.IsZero() && time.Since(p.left) >= spread {
			delete(m.places, task)
			continue
		}
		s.places = append(s.places, *p)
	}
	slices.SortFunc(s.places, func(a, b place) int { return strings.Compare(a.task, b.task) })
	return s
}
