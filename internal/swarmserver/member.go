// SPDX-License-Identifier: Apache-2.0

package swarmserver

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/swarmkit/v2/api"
	"github.com/moby/swarmkit/v2/log"
	"github.com/moby/swarmkit/v2/manager/allocator/networkallocator"
	"github.com/moby/swarmkit/v2/node"
	"google.golang.org/grpc"

	"holdfast/internal/durable"
	"holdfast/internal/errs"
	ours "holdfast/internal/swarm"
	"holdfast/internal/swarmserver/nets"
)

// config is how a node takes part in its swarm. The exported fields are stored in
// docker-state.json, under Docker's names.
type config struct {
	LocalAddr          string
	RemoteAddr         string // of the manager that was joined
	ListenAddr         string
	AdvertiseAddr      string
	DataPathAddr       string
	DefaultAddressPool []netip.Prefix
	SubnetSize         uint32
	DataPathPort       uint32
	// JoinInProgress: the node has not joined yet.
	JoinInProgress bool

	joinAddr        string
	joinToken       string
	forceNewCluster bool
	autolock        bool
	lockKey         []byte
	availability    swarm.NodeAvailability
}

// member runs swarmkit's node, and starts it again if it ends by itself.
type member struct {
	s *server

	mu       sync.RWMutex
	conf     config
	node     *node.Node // nil between two runs
	ready    chan struct{}
	done     chan struct{} // of the present run
	err      error         // of the last run
	control  api.ControlClient
	logs     api.LogsClient
	conn     *grpc.ClientConn
	stopping bool
	wake     *time.Timer
	delay    time.Duration
	// was: a run was ready, so that later ones are started again in any case.
	was bool
}

const (
	firstDelay  = 100 * time.Millisecond
	lastDelay   = 30 * time.Second
	stopTimeout = 15 * time.Second
)

// resume runs the node that the state directory describes.
func (s *server) resume() {
	conf, err := loadConfig(ours.StateDir(s.o.DataRoot))
	switch {
	case errors.Is(err, os.ErrNotExist):
		s.report()
		return
	case err != nil:
		log.L.Errorf("the state of the node can't be read: %v", err)
		s.setMember(&member{s: s, err: err, ready: make(chan struct{}), done: closed()})
		return
	}
	m := &member{s: s, was: !conf.JoinInProgress}
	if conf.JoinInProgress {
		conf.joinAddr = conf.RemoteAddr
	}
	if err := m.start(*conf); err != nil {
		log.L.Errorf("the node can't be started: %v", err)
		m.fail(err)
	}
	s.setMember(m)
}

func closed() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func loadConfig(dir string) (*config, error) {
	text, err := os.ReadFile(filepath.Join(dir, ours.StateFile))
	if err != nil {
		return nil, err
	}
	var c config
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, ours.StateFile), err)
	}
	return &c, nil
}

func (c config) save(dir string) error {
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, ours.StateFile), text, 0o600)
}

// start begins a run. The caller holds no lock.
func (m *member) start(conf config) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.delay = firstDelay
	return m.begin(conf)
}

// begin begins a run. The caller holds mu.
func (m *member) begin(conf config) error {
	dir := ours.StateDir(m.s.o.DataRoot)
	if err := usable(dir, conf.forceNewCluster); err != nil {
		return err
	}
	var pools []string
	for _, p := range conf.DefaultAddressPool {
		pools = append(pools, p.String())
	}
	beat := cmp.Or(m.s.settings.HeartbeatTick, 1)
	c := &node.Config{
		ForceNewCluster:  conf.forceNewCluster,
		ListenControlAPI: filepath.Join(ours.Dir(m.s.o.ExecRoot), "manager.sock"),
		ListenRemoteAPI:  conf.ListenAddr, AdvertiseRemoteAPI: conf.AdvertiseAddr,
		NetworkConfig:   &networkallocator.Config{DefaultAddrPool: pools, SubnetSize: conf.SubnetSize, VXLANUDPPort: conf.DataPathPort},
		NetworkProvider: nets.New(),
		JoinAddr:        conf.joinAddr, JoinToken: conf.joinToken, StateDir: dir, Executor: m.s.executor,
		HeartbeatTick: uint32(beat), ElectionTick: uint32(cmp.Or(m.s.settings.ElectionTick, 10*beat)), // as in Docker
		UnlockKey: conf.lockKey, AutoLockManagers: conf.autolock,
	}
	if a := conf.availability; a != "" {
		value, ok := api.NodeSpec_Availability_value[strings.ToUpper(string(a))]
		if !ok {
			return errs.Invalid("invalid Availability: %q", a)
		}
		c.Availability = api.NodeSpec_Availability(value)
	}
	n, err := node.New(c)
	if err != nil {
		return err
	}
	conf.JoinInProgress = conf.JoinInProgress || conf.joinAddr != ""
	if err := conf.save(dir); err != nil {
		return err
	}
	if err := n.Start(context.Background()); err != nil {
		return err
	}
	m.conf, m.node, m.err = conf, n, nil
	m.ready, m.done = make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go m.watchControl(ctx, n)
	go m.watchReady(ctx, n, m.ready)
	go watchProgress(ctx, dir)
	go func(done chan struct{}) {
		m.ended(n.Err(context.Background()), done)
		cancel()
	}(m.done)
	return nil
}

// watchControl follows the node's role: a manager has clients of its own API.
func (m *member) watchControl(ctx context.Context, n *node.Node) {
	reporting := func() {}
	defer func() { reporting() }()
	for conn := range n.ListenControlSocket(ctx) {
		m.mu.Lock()
		changed := m.conn != conn
		if changed {
			m.conn, m.control, m.logs = conn, nil, nil
			if conn != nil {
				m.control, m.logs = api.NewControlClient(conn), api.NewLogsClient(conn)
			}
		}
		m.mu.Unlock()
		if changed {
			reporting()
			reporting = func() {}
		}
		if changed && conn != nil {
			of, end := context.WithCancel(ctx)
			done := make(chan struct{})
			go func() {
				defer close(done)
				m.reportEvents(of, conn)
			}()
			// Two would report the same events with different sources.
			reporting = func() { end(); <-done }
		}
		m.s.report()
		if err := noteProgress(ours.StateDir(m.s.o.DataRoot)); err != nil {
			log.L.Warnf("record the progress of the raft log: %v", err)
		}
	}
}

func (m *member) watchReady(ctx context.Context, n *node.Node, ready chan struct{}) {
	select {
	case <-n.Ready():
	case <-ctx.Done():
		return
	}
	m.mu.Lock()
	m.err, m.was, m.delay = nil, true, firstDelay
	if m.conf.JoinInProgress {
		m.conf.JoinInProgress = false
		if err := m.conf.save(ours.StateDir(m.s.o.DataRoot)); err != nil {
			log.L.Errorf("record that the node has joined: %v", err)
		}
	}
	m.conf.joinAddr, m.conf.forceNewCluster = "", false // of this run only
	close(ready)
	m.mu.Unlock()
	m.s.report()
}

// ended notes the end of a run, and begins another one later if that may help.
func (m *member) ended(err error, done chan struct{}) {
	if damagedBy(err) {
		log.L.Errorf("the raft log can't be used: %v", err)
		err = setAside(ours.StateDir(m.s.o.DataRoot))
	}
	err = explained(err)
	m.mu.Lock()
	m.node, m.conn, m.control, m.logs, m.err = nil, nil, nil, nil, err
	close(done)
	again := !m.stopping && m.was && !errors.Is(err, errLocked) && !errors.Is(err, errExpired) && !errors.As(err, new(*damageError))
	if again {
		log.L.Errorf("the node has ended and is started again in %s: %v", m.delay, err)
		m.wake = time.AfterFunc(m.delay, m.restart)
		m.delay = min(2*m.delay, lastDelay)
	}
	m.mu.Unlock()
	m.s.report()
}

func (m *member) restart() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopping || m.node != nil {
		return
	}
	if err := m.begin(m.conf); err != nil {
		m.err = err
		m.wake = time.AfterFunc(m.delay, m.restart)
		m.delay = min(2*m.delay, lastDelay)
	}
}

// fail notes that the node could not be started.
func (m *member) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
	if m.ready == nil {
		m.ready, m.done = make(chan struct{}), closed()
	}
}

// await waits until the present run is ready. It returns the run's error if it ends
// before.
func (m *member) await(ctx context.Context) error {
	m.mu.RLock()
	ready, done := m.ready, m.done
	m.mu.RUnlock()
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-done:
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.err
}

// stop ends the node for good, and removes its tasks.
func (m *member) stop() {
	m.mu.Lock()
	m.stopping = true
	if m.wake != nil {
		m.wake.Stop()
	}
	n, done := m.node, m.done
	m.mu.Unlock()
	if n == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := n.Stop(ctx); err != nil && !strings.Contains(err.Error(), "context canceled") {
		log.L.Warnf("stop the node: %v", err)
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// abandon ends the node for another run in this process, and leaves its tasks alone.
func (m *member) abandon() {
	m.s.executor.Keep(true)
	defer m.s.executor.Keep(false)
	m.stop()
}

// view is a consistent picture of a member.
type view struct {
	node    *node.Node
	control api.ControlClient
	logs    api.LogsClient
	conn    *grpc.ClientConn
	conf    config
	err     error
	active  bool // it was ready in this run
}

// view returns the picture of the present member, whose zero value is a host in no
// swarm.
func (s *server) view() (v view, in bool) {
	m := s.present()
	if m == nil {
		return v, false
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	v = view{node: m.node, control: m.control, logs: m.logs, conn: m.conn, conf: m.conf, err: m.err}
	select {
	case <-m.ready:
		v.active = v.node != nil
	default:
	}
	return v, true
}

// manager reports whether the node has the role of a manager, though it may not serve
// requests yet.
func (v view) manager() bool { return v.control != nil || v.node != nil && v.node.Manager() != nil }

// state is the node's state as Docker names it.
func (s *server) state() swarm.LocalNodeState {
	v, in := s.view()
	switch {
	case !in:
		return swarm.LocalNodeStateInactive
	case v.active:
		return swarm.LocalNodeStateActive
	case errors.Is(v.err, errLocked):
		return swarm.LocalNodeStateLocked
	case v.err != nil:
		return swarm.LocalNodeStateError
	}
	return swarm.LocalNodeStatePending
}

// status is the header Swarm of the API.
func (s *server) status() string {
	state := s.state()
	if state != swarm.LocalNodeStateActive {
		return string(state)
	}
	if v, _ := s.view(); v.manager() {
		return string(state) + "/manager"
	}
	return string(state) + "/worker"
}
