// SPDX-License-Identifier: Apache-2.0

package swarmserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/v2/daemon/cluster/convert"
	"github.com/moby/swarmkit/v2/api"
	"github.com/moby/swarmkit/v2/log"
	"github.com/moby/swarmkit/v2/manager/encryption"

	"holdfast/internal/api/wire"
	"holdfast/internal/errs"
	ours "holdfast/internal/swarm"
)

const (
	// joinTimeout bounds how long a client waits for a join, as in Docker.
	joinTimeout = 20 * time.Second
	// initTimeout bounds how long a new cluster takes to accept its specification.
	initTimeout = 5 * time.Second
	// leaveTimeout bounds the removal of the containers of tasks.
	leaveTimeout = 2 * time.Minute
)

// named checks the only name that a cluster may have.
func named(spec *swarm.Spec) error {
	if spec.Annotations.Name == "" {
		spec.Annotations.Name = "default"
	}
	if spec.Annotations.Name != "default" {
		return errs.Invalid(`swarm spec must be named "default"`)
	}
	return nil
}

func (s *server) init(r *wire.Request, w http.ResponseWriter) (any, error) {
	req, err := decode[swarm.InitRequest](r, w)
	if err != nil {
		return nil, err
	}
	req.AdvertiseAddr = cmp.Or(req.AdvertiseAddr, s.settings.AdvertiseAddr)
	conf, err := initConfig(req)
	if err != nil {
		return nil, err
	}
	s.change.Lock()
	defer s.change.Unlock()
	if m := s.present(); m != nil {
		if !req.ForceNewCluster {
			return nil, errExists
		}
		// The cluster goes on with this node alone, from the present state.
		m.abandon()
		s.setMember(nil)
	}
	m := &member{s: s}
	err = m.start(*conf)
	if err == nil {
		s.setMember(m)
		err = m.await(r.Context())
	}
	if err == nil {
		err = m.specify(req.Spec)
	}
	if err != nil && req.ForceNewCluster {
		return nil, err // the state stays, and so do the tasks
	}
	if err != nil {
		m.stop()
		s.setMember(nil)
		return nil, errors.Join(err, s.forget())
	}
	v, _ := s.view()
	if v.node == nil {
		return nil, errSoon
	}
	return v.node.NodeID(), nil
}

func initConfig(req swarm.InitRequest) (*config, error) {
	if err := named(&req.Spec); err != nil {
		return nil, err
	}
	listen, port, err := listenAddr(req.ListenAddr)
	if err != nil {
		return nil, err
	}
	advertise, advertisePort, err := advertiseAddr(req.AdvertiseAddr, port)
	if err != nil {
		return nil, err
	}
	dataPath, err := dataPathAddr(req.DataPathAddr)
	if err != nil {
		return nil, err
	}
	if req.DataPathPort == 0 {
		req.DataPathPort = 4789
	}
	if req.DataPathPort < 1024 || req.DataPathPort > 49151 {
		return nil, errs.Invalid("Datapath port number is not in valid range (1024-49151) : %d", req.DataPathPort)
	}
	if err := checkPools(req.DefaultAddrPool, req.SubnetSize); err != nil {
		return nil, err
	}
	return &config{
		LocalAddr: advertise, ListenAddr: net.JoinHostPort(listen, port), AdvertiseAddr: net.JoinHostPort(advertise, advertisePort),
		DataPathAddr: dataPath, DataPathPort: req.DataPathPort, DefaultAddressPool: req.DefaultAddrPool, SubnetSize: req.SubnetSize,
		forceNewCluster: req.ForceNewCluster, autolock: req.AutoLockManagers, availability: req.Availability,
	}, nil
}

// specify gives a new cluster the specification that the client wants.
func (m *member) specify(spec swarm.Spec) error {
	ctx, cancel := context.WithTimeout(context.Background(), initTimeout)
	defer cancel()
	if err := named(&spec); err != nil {
		return err
	}
	for {
		m.mu.RLock()
		control := m.control
		m.mu.RUnlock()
		if control == nil {
			return errSoon
		}
		cluster, err := clusterOf(ctx, control)
		switch {
		case err == nil:
			merged, err := convert.MergeSwarmSpecToGRPC(spec, cluster.Spec)
			if err != nil {
				return errs.Invalid("%s", err)
			}
			_, err = control.UpdateCluster(ctx, &api.UpdateClusterRequest{ClusterID: cluster.ID, ClusterVersion: &cluster.Meta.Version, Spec: &merged})
			if err != nil {
				return fmt.Errorf("error updating cluster settings: %w", answered(err))
			}
			return nil
		case !errors.Is(err, errNoSwarm):
			return err
		}
		// The store has not got the cluster yet.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func clusterOf(ctx context.Context, control api.ControlClient) (*api.Cluster, error) {
	list, err := control.ListClusters(ctx, &api.ListClustersRequest{})
	if err != nil {
		return nil, err
	}
	if len(list.Clusters) == 0 {
		return nil, errNoSwarm
	}
	return list.Clusters[0], nil
}

func (s *server) join(r *wire.Request, w http.ResponseWriter) (any, error) {
	req, err := decode[swarm.JoinRequest](r, w)
	if err != nil {
		return nil, err
	}
	s.change.Lock()
	defer s.change.Unlock()
	if s.present() != nil {
		return nil, errExists
	}
	if len(req.RemoteAddrs) == 0 {
		return nil, errs.Invalid("at least 1 RemoteAddr is required to join")
	}
	req.AdvertiseAddr = cmp.Or(req.AdvertiseAddr, s.settings.AdvertiseAddr)
	listen, port, err := listenAddr(req.ListenAddr)
	if err != nil {
		return nil, err
	}
	conf := config{
		RemoteAddr: withPort(req.RemoteAddrs[0]), ListenAddr: net.JoinHostPort(listen, port),
		joinToken: req.JoinToken, availability: req.Availability,
	}
	conf.joinAddr = conf.RemoteAddr
	if conf.DataPathAddr, err = dataPathAddr(req.DataPathAddr); err != nil {
		return nil, err
	}
	if req.AdvertiseAddr != "" {
		host, port, err := advertiseAddr(req.AdvertiseAddr, port)
		if err != nil {
			return nil, err
		}
		conf.AdvertiseAddr = net.JoinHostPort(host, port)
	}
	if conf.LocalAddr, err = localAddr(conf.RemoteAddr); err != nil {
		return nil, err
	}
	m := &member{s: s}
	if err := m.start(conf); err != nil {
		return nil, errors.Join(err, s.forget())
	}
	s.setMember(m)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), joinTimeout)
	defer cancel()
	err = m.await(ctx)
	switch {
	case err == nil:
		return nil, nil
	case ctx.Err() != nil:
		return nil, errTimeout
	}
	m.stop()
	s.setMember(nil)
	return nil, errors.Join(err, s.forget())
}

// forget removes the state of a node that is in no swarm. The directory itself stays,
// because an operator may have mounted it.
func (s *server) forget() error {
	dir := ours.StateDir(s.o.DataRoot)
	// The file that makes the host a member goes first.
	if err := os.Remove(filepath.Join(dir, ours.StateFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) leave(r *wire.Request, _ http.ResponseWriter) (any, error) {
	force := r.Bool("force")
	s.change.Lock()
	defer s.change.Unlock()
	m := s.present()
	if m == nil {
		return nil, errNoSwarm
	}
	v, _ := s.view()
	if !force {
		if err := mayLeave(v); err != nil {
			return nil, err
		}
	}
	m.stop()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), leaveTimeout)
	defer cancel()
	all, err := s.host.All()
	if err != nil {
		log.L.Errorf("some containers can't be read, and stay: %v", err)
	}
	for _, c := range all {
		if err := s.engine.Remove(ctx, c.ID); err != nil {
			log.L.Errorf("remove the container %s of a task: %v", c.ID, err)
		}
	}
	if err := s.leaveNetworks(ctx); err != nil {
		log.L.Errorf("%v", err)
	}
	if err := ours.UnmountSecrets(s.o.ExecRoot); err != nil {
		log.L.Errorf("%v", err)
	}
	if err := s.forget(); err != nil {
		return nil, err
	}
	s.setMember(nil)
	return nil, nil
}

// mayLeave refuses to leave where that takes something from the cluster.
func mayLeave(v view) error {
	if errors.Is(v.err, errLocked) {
		return errs.Unavailable("Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message.")
	}
	if !v.manager() {
		return nil
	}
	message := "You are attempting to leave the swarm on a node that is participating as a manager. "
	if v.control == nil {
		message += "Doing so may lose the consensus of your cluster. "
	} else if reachable, unreachable, err := managers(v); err == nil {
		switch {
		case reachable == 1 && unreachable == 0:
			return errs.Unavailable("%s", message+"Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. ")
		case reachable-2 <= unreachable:
			message += fmt.Sprintf("Removing this node leaves %v managers out of %v. Without a Raft quorum your swarm will be inaccessible. ", reachable-1, reachable+unreachable)
		}
	}
	return errs.Unavailable("%s", message+"The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` to suppress this message.")
}

func managers(v view) (reachable, unreachable int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), initTimeout)
	defer cancel()
	list, err := v.control.ListNodes(ctx, &api.ListNodesRequest{}, large)
	if err != nil {
		return 0, 0, err
	}
	for _, n := range list.Nodes {
		switch {
		case n.ManagerStatus == nil:
		case n.ManagerStatus.Reachability == api.RaftMemberStatus_REACHABLE:
			reachable++
		default:
			unreachable++
		}
	}
	return reachable, unreachable, nil
}

func (s *server) inspect(r *wire.Request, _ http.ResponseWriter) (any, error) {
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		c, err := clusterOf(ctx, v.control)
		if err != nil {
			return nil, err
		}
		return convert.SwarmFromGRPC(*c), nil
	})
}

func (s *server) update(r *wire.Request, w http.ResponseWriter) (any, error) {
	spec, err := decode[swarm.Spec](r, w)
	if err != nil {
		return nil, err
	}
	version, err := objectVersion(r, "swarm")
	if err != nil {
		return nil, err
	}
	if err := named(&spec); err != nil {
		return nil, err
	}
	converted, err := convert.SwarmSpecToGRPC(spec)
	if err != nil {
		return nil, errs.Invalid("%s", err)
	}
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		c, err := clusterOf(ctx, v.control)
		if err != nil {
			return nil, err
		}
		_, err = v.control.UpdateCluster(ctx, &api.UpdateClusterRequest{
			ClusterID: c.ID, Spec: &converted, ClusterVersion: &api.Version{Index: version},
			Rotation: api.KeyRotation{
				WorkerJoinToken: r.Bool("rotateWorkerToken"), ManagerJoinToken: r.Bool("rotateManagerToken"), ManagerUnlockKey: r.Bool("rotateManagerUnlockKey"),
			},
		})
		return nil, err
	})
}

func (s *server) unlockKey(r *wire.Request, _ http.ResponseWriter) (any, error) {
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		res, err := api.NewCAClient(v.conn).GetUnlockKey(ctx, &api.GetUnlockKeyRequest{})
		if err != nil {
			return nil, err
		}
		key := swarm.UnlockKeyResponse{}
		if len(res.UnlockKey) > 0 {
			key.UnlockKey = encryption.HumanReadableKey(res.UnlockKey)
		}
		return key, nil
	})
}

func (s *server) unlock(r *wire.Request, w http.ResponseWriter) (any, error) {
	req, err := decode[swarm.UnlockRequest](r, w)
	if err != nil {
		return nil, err
	}
	s.change.Lock()
	defer s.change.Unlock()
	v, in := s.view()
	switch {
	case v.control != nil:
		return nil, errs.Conflict("swarm is not locked")
	case !errors.Is(v.err, errLocked):
		return nil, noManager(v, in)
	}
	key, err := encryption.ParseHumanReadableKey(req.UnlockKey)
	if err != nil {
		return nil, errs.Invalid("%s", err)
	}
	s.present().abandon()
	conf := v.conf
	conf.lockKey = key
	next := &member{s: s}
	if err := next.start(conf); err != nil {
		return nil, err
	}
	s.setMember(next)
	err = next.await(r.Context())
	if errors.Is(err, errLocked) {
		return nil, errdefs.ErrUnauthenticated.WithMessage("swarm could not be unlocked: invalid key provided")
	}
	if err != nil {
		return nil, fmt.Errorf("swarm component could not be started: %w", err)
	}
	return nil, nil
}

// info is the swarm section of GET /info.
func (s *server) info(ctx context.Context) swarm.Info {
	v, _ := s.view()
	info := swarm.Info{LocalNodeState: s.state(), NodeAddr: v.address()}
	if v.err != nil {
		info.Error = v.err.Error()
	}
	if v.node != nil {
		info.NodeID = v.node.NodeID()
		for _, p := range v.node.Remotes() {
			info.RemoteManagers = append(info.RemoteManagers, swarm.Peer{NodeID: p.NodeID, Addr: p.Addr})
		}
	}
	if v.control == nil {
		return info
	}
	info.ControlAvailable = true
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if c, err := clusterOf(ctx, v.control); err != nil {
		info.Error = err.Error()
	} else {
		cluster := convert.SwarmFromGRPC(*c).ClusterInfo
		info.Cluster = &cluster
	}
	list, err := v.control.ListNodes(ctx, &api.ListNodesRequest{}, large)
	if err != nil {
		info.Error = err.Error()
		return info
	}
	info.Nodes = len(list.Nodes)
	for _, n := range list.Nodes {
		if n.ManagerStatus != nil {
			info.Managers++
		}
	}
	if info.Managers == 2 {
		info.Warnings = append(info.Warnings, "WARNING: two managers tolerate no failure: if one of them is lost, the swarm can't be managed. Use one, three or five.")
	}
	return info
}
