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
				if err := shim.Update(context.Background(), proto.Update{Attributes: at}); err != nil {
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
	err = a.ask(ctx, container.AskChange, func(_ container.Action, done func(error)) {
		h, resources, warnings, err := oci.Update(e.host, a.req.HostConfig, u)
		if err != nil {
			done(err)
			return
		}
		r.Warnings = append(r.Warnings, warnings...)
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
				err = shim.Update(context.Background(), msg)
			}
			a.post(func() {
				if err == nil {
					req := a.req
					req.HostConfig = h
					err = a.saveRequest(req)
				}
				if err == nil {
					a.spec.Restart = policy
					err = a.save()
					a.publish()
					a.emit("update", nil)
				}
				done(err)
			})
		}()
	})
	return r, err
}

// saveRequest puts a changed request into the spec, in the loop.
func (a *actor) saveRequest(req request) error {
	raw, err := json.Marshal(req)
	if err != nil {
		return err
	}
	a.req, a.spec.API = req, raw
	return nil
}
