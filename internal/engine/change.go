package engine

import (
	"context"
	"encoding/json"
	"strings"

	moby "github.com/moby/moby/api/types/container"

	"holdfast/internal/container"
	"holdfast/internal/engine/oci"
	"holdfast/internal/shim/proto"
)

// ContainerRename gives a container another name.
func (e *Engine) ContainerRename(ctx context.Context, ref, name string) error {
	a, err := e.find(ctx, ref)
	if err != nil {
		return err
	}
	if name == "" || !validName.MatchString(name) {
		return invalid("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	name = strings.TrimPrefix(name, "/")
	return a.ask(ctx, container.AskChange, func(_ container.Action, done func(error)) {
		old := a.spec.Name
		if name == old {
			done(invalid("Renaming a container with the same name as its current name"))
			return
		}
		if err := e.index.reserve(name, a.id); err != nil {
			done(err)
			return
		}
		a.spec.Name = name
		if err := a.save(); err != nil {
			a.spec.Name = old
			e.index.release(name, a.id)
			done(err)
			return
		}
		e.index.release(old, a.id)
		a.publish()
		a.emit("rename", map[string]string{"oldName": "/" + old})
		shim, at := a.shim, a.attributes()
		go func() {
			if shim != nil {
				// The name in what the shim journals; nothing hangs on it.
				err := a.insist(context.Background(), shim, func(s Shim) error {
					return s.Update(context.Background(), proto.Update{Attributes: at})
				})
				if err != nil {
					a.log.Warn("the shim keeps the old name in its journal", "error", err)
				}
			}
			done(nil)
		}()
	})
}

// ContainerUpdate changes limits and the restart policy, also while running.
func (e *Engine) ContainerUpdate(ctx context.Context, ref string, u moby.UpdateConfig) (moby.UpdateResponse, error) {
	r := moby.UpdateResponse{Warnings: []string{}}
	a, err := e.find(ctx, ref)
	if err != nil {
		return r, err
	}
	var warnings []string // of the loop until it has answered
	err = a.ask(ctx, container.AskChange, func(_ container.Action, done func(error)) {
		h, resources, w, err := oci.Update(e.host, a.req.HostConfig, u)
		if err != nil {
			done(err)
			return
		}
		warnings = w
		policy := restartPolicy(h.RestartPolicy)
		shim := a.shim
		msg := proto.Update{Restart: &proto.RestartPolicy{Name: policy.Name, MaxRetries: policy.MaxRetries}}
		if resources != nil {
			if msg.Resources, err = json.Marshal(resources); err != nil {
				done(err)
				return
			}
		}
		go func() {
			var err error
			if shim != nil {
				err = a.insist(context.Background(), shim, func(s Shim) error { return s.Update(context.Background(), msg) })
			}
			a.post(func() {
				if err == nil {
					err = a.update(u)
				}
				done(err)
			})
		}()
	})
	if err != nil {
		return r, err
	}
	r.Warnings = append(r.Warnings, warnings...)
	return r, nil
}

// update records a change that is in force, in the loop. It is judged once
// more, as another may have been recorded meanwhile, and both are to last.
func (a *actor) update(u moby.UpdateConfig) error {
	h, _, _, err := oci.Update(a.e.host, a.req.HostConfig, u)
	if err != nil {
		return err
	}
	was, spec := a.req, a.spec
	req := a.req
	req.HostConfig = h
	if err = a.saveRequest(req); err == nil {
		a.spec.Restart = restartPolicy(h.RestartPolicy)
		err = a.save()
	}
	if err != nil {
		a.req, a.spec = was, spec
		return err
	}
	a.publish()
	a.emit("update", nil)
	return nil
}

// saveRequest puts a changed request into the spec, in the loop.
func (a *actor) saveRequest(req request) error {
	raw, err := req.encode()
	if err != nil {
		return err
	}
	a.req, a.spec.API = req, raw
	return nil
}
