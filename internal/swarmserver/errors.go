// SPDX-License-Identifier: Apache-2.0

package swarmserver

import (
	"crypto/x509"
	"errors"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/moby/swarmkit/v2/node"
	"google.golang.org/grpc/status"

	"holdfast/internal/errs"
)

// Errors whose text Docker's clients and users know.
var (
	errExists  = errs.Unavailable(`This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.`)
	errNoSwarm = errs.Unavailable("This node is not part of a swarm")
	errTimeout = errs.Unavailable(`Timeout was reached before node joined. The attempt to join the swarm will continue in the background. Use the "docker info" command to see the current swarm status of your node.`)
	errLocked  = errs.Unavailable(`Swarm is encrypted and needs to be unlocked before it can be used. Please use "docker swarm unlock" to unlock it.`)
	errExpired = errs.Unavailable(`Swarm certificates have expired. The tasks of this node run on. To get new certificates, run "docker swarm leave --force" and "docker swarm join" here, which ends these tasks, and "docker node rm --force" for the former node on a manager. On the only manager of a swarm, run "docker swarm init --force-new-cluster" instead, which keeps them.`)
	errNone    = errs.Unavailable(`This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)
	errWorker  = errs.Unavailable("This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager.")
	errSoon    = errs.Unavailable("This node is not a swarm manager. Manager is being prepared or has trouble connecting to the cluster.")
)

// explained is the end of a node in words that say what to do.
func explained(err error) error {
	var invalid x509.CertificateInvalidError
	switch {
	case errors.Is(err, node.ErrInvalidUnlockKey):
		return errLocked
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return errExpired
	}
	return err
}

// noManager says why a request for the cluster can't be answered here.
func noManager(v view, in bool) error {
	switch {
	case !in:
		return errNone
	case errors.Is(v.err, errLocked), errors.Is(v.err, errExpired), errors.As(v.err, new(*damageError)):
		return v.err
	case v.node == nil:
		return errNone
	case v.manager():
		return errSoon
	}
	return errWorker
}

// answered gives an error of the manager's API its kind. Its text stays as it is,
// because Docker shows it like that.
func answered(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); !ok {
		return err
	}
	return kindly{err, errgrpc.ToNative(err)}
}

type kindly struct {
	error
	kind error
}

func (k kindly) Unwrap() error { return k.kind }
