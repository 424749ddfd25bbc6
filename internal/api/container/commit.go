// SPDX-License-Identifier: Apache-2.0

package container

import (
	"net/http"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/container"

	"holdfast/internal/api/wire"
	"holdfast/internal/engine"
)

func (h *handlers) commit(w http.ResponseWriter, r *wire.Request) error {
	name := r.Query.Get("container")
	if name == "" {
		return wire.Invalid("missing parameter: give the container to commit as \"container\"")
	}
	o := engine.CommitOptions{
		Author: r.Query.Get("author"), Comment: r.Query.Get("comment"), Changes: r.Query["changes"], Pause: r.BoolOr("pause", true),
	}
	if repo := r.Query.Get("repo"); repo != "" {
		named, err := reference.ParseNormalizedNamed(repo)
		if err != nil {
			return wire.Invalid("%w", err)
		}
		if tag := r.Query.Get("tag"); tag != "" {
			if named, err = reference.WithTag(reference.TrimNamed(named), tag); err != nil {
				return wire.Invalid("invalid tag %q: %w", tag, err)
			}
		}
		if _, digested := named.(reference.Digested); digested {
			return wire.Invalid("refusing to create a tag with a digest reference")
		}
		o.Ref = reference.TagNameOnly(named).String()
	}
	var config container.Config
	if ok, err := r.Decode(w, &config); err != nil {
		return err
	} else if ok {
		o.Config = &config
	}
	id, err := h.backend.ContainerCommit(r.Context(), name, o)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusCreated, container.CommitResponse{ID: id})
}
