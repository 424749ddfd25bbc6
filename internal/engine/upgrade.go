// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"holdfast/internal/shim/proto"
)

// upgradeLimit bounds the upgrade of one shim.
const upgradeLimit = time.Minute

// upgrader is implemented by shims that can re-exec as another binary.
type upgrader interface {
	Upgrade(ctx context.Context, binary string) (proto.HelloReply, error)
}

// ShimUpgrade is the result of the upgrade of one shim.
type ShimUpgrade struct {
	ID     string `json:"id"` // of the container
	Name   string `json:"name"`
	Before string `json:"before"`          // the shim's release before
	After  string `json:"after,omitempty"` // and afterwards; empty if the upgrade failed
	Error  string `json:"error,omitempty"`
}

// UpgradeShims upgrades the shims of all running containers in place: they re-exec as
// another binary, which defaults to the daemon's configured shim. If the upgrade of a
// shim fails, the shim runs on unchanged, and its Error contains the reason. The
// result is ordered by the containers' names.
func (e *Engine) UpgradeShims(ctx context.Context, binary string) ([]ShimUpgrade, error) {
	if err := e.ready(ctx); err != nil {
		return nil, err
	}
	if binary == "" {
		binary = e.config.Load().ShimPath
	}
	binary, err := filepath.Abs(binary)
	if err != nil {
		return nil, err
	}
	var todo []*actor
	for _, a := range e.index.all() {
		if a.view.Load().state.Alive() {
			todo = append(todo, a)
		}
	}
	done := make([]ShimUpgrade, len(todo))
	var g errgroup.Group
	g.SetLimit(8)
	for i, a := range todo {
		g.Go(func() error {
			done[i] = upgradeShim(a, binary)
			return nil
		})
	}
	_ = g.Wait()
	done = slices.DeleteFunc(done, func(u ShimUpgrade) bool { return u.ID == "" })
	slices.SortFunc(done, func(x, y ShimUpgrade) int { return strings.Compare(x.Name, y.Name) })
	return done, nil
}

// upgradeShim upgrades one shim. The result has no ID if the container has ended
// meanwhile. The upgrade is finished even if the client stops waiting.
func upgradeShim(a *actor, binary string) ShimUpgrade {
	ctx, cancel := context.WithTimeout(context.Background(), upgradeLimit)
	defer cancel()
	u := ShimUpgrade{ID: a.id, Name: a.view.Load().spec.Name}
	err := a.withShim(ctx, "is not running", func(s Shim) error {
		u.Before = s.Hello().Release
		up, ok := s.(upgrader)
		if !ok {
			return errdefs.ErrNotImplemented
		}
		reply, err := up.Upgrade(ctx, binary)
		u.After = reply.Release
		return err
	})
	switch {
	case err == nil:
		a.post(a.publish)
	case !a.view.Load().state.Alive():
		return ShimUpgrade{}
	case errdefs.IsNotImplemented(err):
		u.Error = "its shim is of a release that can't be upgraded in place: it stays until the container is started again"
	case errors.Is(err, context.DeadlineExceeded):
		u.Error = "its shim has not answered for " + upgradeLimit.String() + ": it may run on unchanged"
	default:
		u.Error = err.Error()
	}
	return u
}

// UpgradeShims needs the daemon.
func (o *Observer) UpgradeShims(context.Context, string) ([]ShimUpgrade, error) {
	return nil, needsDaemon("upgrading shims")
}
