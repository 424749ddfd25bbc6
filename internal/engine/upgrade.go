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

// upgradeLimit is how long one shim may take.
const upgradeLimit = time.Minute

// upgrader is a shim that can go on as another binary.
type upgrader interface {
	Upgrade(ctx context.Context, binary string) (proto.HelloReply, error)
}

// ShimUpgrade is what became of one shim.
type ShimUpgrade struct {
	ID     string `json:"id"` // of the container
	Name   string `json:"name"`
	Before string `json:"before"`          // release
	After  string `json:"after,omitempty"` // empty when it failed
	Error  string `json:"error,omitempty"`
}

// UpgradeShims makes the shims of all running containers go on as another
// binary, in place: the daemon's own unless one is named by its absolute path.
// A shim that can't goes on as it is, and its Error says why. The answer is in
// the order of the containers' names.
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
			done[i] = a.upgradeShim(binary)
			return nil
		})
	}
	_ = g.Wait()
	done = slices.DeleteFunc(done, func(u ShimUpgrade) bool { return u.ID == "" })
	slices.SortFunc(done, func(x, y ShimUpgrade) int { return strings.Compare(x.Name, y.Name) })
	return done, nil
}

// upgradeShim upgrades one; without an ID in the answer the container has ended
// meanwhile. Who asked may go: what was begun is finished.
func (a *actor) upgradeShim(binary string) ShimUpgrade {
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
		u.Error = "its shim has not answered for " + upgradeLimit.String() + ", it may go on as it is"
	default:
		u.Error = err.Error()
	}
	return u
}

// UpgradeShims is the daemon's.
func (o *Observer) UpgradeShims(context.Context, string) ([]ShimUpgrade, error) {
	return nil, needsDaemon("upgrading shims")
}
