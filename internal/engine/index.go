package engine

import (
	"strings"
	"sync"
)

// index finds containers: by ID, by name, by the beginning of an ID. A name
// belongs to one container from its reservation until its release.
type index struct {
	mu    sync.RWMutex // guards all below
	byID  map[string]*actor
	names map[string]string // name → ID
	execs map[string]string // exec ID → container ID
}

func newIndex() *index {
	return &index{byID: map[string]*actor{}, names: map[string]string{}, execs: map[string]string{}}
}

// reserve takes a name for an ID. It is a conflict if another has it.
func (r *index) reserve(name, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if owner, ok := r.names[name]; ok && owner != id {
		return conflict("Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, owner)
	}
	r.names[name] = id
	return nil
}

// release gives a name back if the ID still has it.
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

// remove forgets a container, its name and its execs.
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

// find takes a full ID, a name with or without its slash, or the beginning of
// an ID that no other container shares.
func (r *index) find(ref string) (*actor, error) {
	if ref == "" {
		return nil, invalid("a container name or ID is needed")
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if a, ok := r.byID[ref]; ok {
		return a, nil
	}
	if id, ok := r.names[strings.TrimPrefix(ref, "/")]; ok {
		if a, ok := r.byID[id]; ok {
			return a, nil
		}
	}
	var found *actor
	for id, a := range r.byID {
		if strings.HasPrefix(id, ref) {
			if found != nil {
				return nil, invalid("multiple IDs found with provided prefix: %s", ref)
			}
			found = a
		}
	}
	if found == nil {
		return nil, notFound("No such container: %s", ref)
	}
	return found, nil
}

func (r *index) addExec(exec, id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.execs[exec] = id
}

// byExec finds the container of an exec session.
func (r *index) byExec(exec string) (*actor, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if a, ok := r.byID[r.execs[exec]]; ok {
		return a, nil
	}
	return nil, notFound("No such exec instance: %s", exec)
}
