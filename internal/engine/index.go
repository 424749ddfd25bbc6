// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"maps"
	"strings"
	"sync"
	"sync/atomic"

	moby "github.com/moby/moby/api/types/container"

	"holdfast/internal/errs"
	"holdfast/internal/lookup"
)

// index finds containers by ID, by name or by a prefix of an ID. A name belongs to
// one container from its reservation until its release.
type index struct {
	*progress
	mu    sync.RWMutex // guards all below
	byID  map[string]*actor
	names map[string]string // name → ID
	execs map[string]string // exec ID → container ID

	// unread are the IDs of containers whose records can't be used. Load sets it,
	// before there are requests.
	unread []string

	links atomic.Bool // some container has links
}

func newIndex(p *progress) *index {
	return &index{progress: p, byID: map[string]*actor{}, names: map[string]string{}, execs: map[string]string{}}
}

// reserve reserves a name for an ID. It returns a conflict if another ID has it.
func (r *index) reserve(name, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if owner, ok := r.names[name]; ok && owner != id {
		return errs.Conflict("Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, owner)
	}
	r.names[name] = id
	return nil
}

// release releases a name if the ID still has it.
func (r *index) release(name, id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.names[name] == id {
		delete(r.names, name)
	}
}

func (r *index) add(a *actor) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byID[a.id] = a
}

// remove removes a container, its name and its exec sessions.
func (r *index) remove(id, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.byID, id)
	if r.names[name] == id {
		delete(r.names, name)
	}
	for exec, owner := range r.execs {
		if owner == id {
			delete(r.execs, exec)
		}
	}
}

func (r *index) has(id string) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	_, ok := r.byID[id]
	return ok
}

func (r *index) all() []*actor {
	r.mu.RLock()
	defer r.mu.RUnlock()
	list := make([]*actor, 0, len(r.byID))
	for _, a := range r.byID {
		list = append(list, a)
	}
	return list
}

// find returns a container by its full ID, its name with or without the slash, or a
// unique prefix of its ID.
func (r *index) find(ref string) (*actor, error) {
	if ref == "" {
		return nil, errs.Invalid("a container's name or ID is required")
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	a, err := lookup.Find(ref, lookup.In[*actor]{
		ID:   func(id string) (*actor, bool) { a, ok := r.byID[id]; return a, ok },
		Name: r.named,
		All:  maps.All(r.byID),
	})
	switch {
	case errors.Is(err, lookup.ErrSeveral):
		return nil, errs.Invalid("multiple IDs found with provided prefix: %s", ref)
	case err != nil:
		return nil, errs.NotFound("No such container: %s", ref)
	}
	return a, nil
}

// findForChange returns a container for a request that may change it. It waits until
// the restore is done.
func (r *index) findForChange(ctx context.Context, ref string) (*actor, error) {
	if err := r.ready(ctx); err != nil {
		return nil, err
	}
	return r.find(ref)
}

// named returns a container by its name, with or without the slash, or by the name
// of a link: container/alias. r.mu is held.
func (r *index) named(name string) (*actor, bool) {
	name = strings.TrimPrefix(name, "/")
	if a, ok := r.byID[r.names[name]]; ok {
		return a, true
	}
	parent, alias, linked := strings.Cut(name, "/")
	if !linked {
		return nil, false
	}
	a, ok := r.byID[r.names[parent]]
	if !ok {
		return nil, false
	}
	for _, l := range linksOf(a.view.Load().req) {
		if l.alias == alias {
			return r.target(l)
		}
	}
	return nil, false
}

// target is the container that a link leads to. r.mu is held.
func (r *index) target(l link) (*actor, bool) {
	if a, ok := r.byID[l.to]; ok {
		return a, true
	}
	a, ok := r.byID[r.names[l.to]] // earlier releases stored the name instead of the ID
	return a, ok
}

func (r *index) addExec(exec, id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.execs[exec] = id
}

// linked returns a snapshot of the container that a link leads to.
func (r *index) linked(l link) (*view, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	a, ok := r.target(l)
	if !ok {
		return nil, false
	}
	return a.view.Load(), true
}

// byExec returns the container of an exec session. As in Docker, only the session's
// full ID is accepted.
func (r *index) byExec(exec string) (*actor, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	a, err := lookup.Find(exec, lookup.In[*actor]{
		ID: func(id string) (*actor, bool) { a, ok := r.byID[r.execs[id]]; return a, ok },
	})
	if err != nil {
		return nil, errs.NotFound("No such exec instance: %s", exec)
	}
	return a, nil
}

// ownerOf returns the container that created the namespace which a container uses.
// next returns the container that a given one joins, if any. A cycle is an error.
func (r *index) ownerOf(v *view, next func(*moby.HostConfig) (string, bool)) (*view, error) {
	seen := map[string]bool{}
	for {
		ref, joins := next(v.req.HostConfig)
		if !joins {
			return v, nil
		}
		seen[v.spec.ID] = true
		a, err := r.find(ref)
		if err != nil {
			return nil, err
		}
		if seen[a.id] {
			return nil, errs.Invalid("container %s joins its own namespace through other containers: create it again", v.spec.Name)
		}
		v = a.view.Load()
	}
}

// joinedBy reports whether running containers have joined a container's network
// namespace.
func (r *index) joinedBy(id string) bool {
	for _, a := range r.all() {
		v := a.view.Load()
		if a.id == id || !v.req.HostConfig.NetworkMode.IsContainer() || !v.state.Alive() {
			continue
		}
		if owner, err := r.ownerOf(v, networkOf); err == nil && owner.spec.ID == id {
			return true
		}
	}
	return false
}
