// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	moby "github.com/moby/moby/api/types/container"

	"holdfast/internal/container"
	"holdfast/internal/engine/oci"
	"holdfast/internal/errs"
	"holdfast/internal/shim/proto"
)

// ContainerRename renames a container.
func (e *Engine) ContainerRename(ctx context.Context, ref, name string) error {
	a, err := e.find(ctx, ref)
	if err != nil {
		return err
	}
	if name == "" {
		return errs.Invalid("Neither old nor new names may be empty")
	}
	if !validName.MatchString(name) {
		return errs.Invalid("Error when allocating new name: Invalid container name (/%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	name = strings.TrimPrefix(name, "/")
	return a.ask(ctx, container.AskChange, func(_ container.Action, done func(error)) {
		old := a.spec.Name
		if name == old {
			done(errs.Invalid("Renaming a container with the same name as its current name"))
			return
		}
		if err := e.index.reserve(name, a.id); err != nil {
			done(fmt.Errorf("Error when allocating new name: %w", err))
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
		shim, at := a.shim, attributesOf(a.spec, a.req)
		go func() {
			if shim != nil {
				// This only changes the name in the shim's journal entries, so an error
				// does not fail the rename.
				err := a.callShim(context.Background(), shim, func(s Shim) error {
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

// ContainerUpdate changes limits and the restart policy, also of a running
// container.
func (e *Engine) ContainerUpdate(ctx context.Context, ref string, u moby.UpdateConfig) (moby.UpdateResponse, error) {
	r := moby.UpdateResponse{}
	a, err := e.find(ctx, ref)
	if err != nil {
		return r, err
	}
	var warnings []string // written by the loop before it answers
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
				err = a.callShim(context.Background(), shim, func(s Shim) error { return s.Update(context.Background(), msg) })
			}
			a.post(func() {
				if errdefs.IsConflict(err) && !a.phase.State.Alive() {
					err = nil // the container has ended: the change is for its next run
				}
				if err == nil {
					err = recordUpdate(a, u)
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

// recordUpdate records a change that is in force, in the loop. The change is applied to
// the present request once more, because another update may have been recorded
// meanwhile and must not be lost.
func recordUpdate(a *actor, u moby.UpdateConfig) error {
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

// saveRequest puts a changed request into the spec, in the loop. It does not
// persist the spec.
func (a *actor) saveRequest(req request) error {
	raw, err := req.encode()
	if err != nil {
		return err
	}
	a.req, a.spec.API = req, raw
	return nil
}
