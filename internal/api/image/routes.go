// SPDX-License-Identifier: Apache-2.0

package image

import (
	"net/http"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"

	"holdfast/internal/api/wire"
	"holdfast/internal/engine/objects"
	"holdfast/internal/filter"
)

type handlers struct{ backend Backend }

// Routes returns the operations of this package.
func Routes(b Backend) []wire.Route {
	h := &handlers{b}
	return []wire.Route{
		{Method: "GET", Path: "/images/json", Handle: h.list},
		{Method: "GET", Path: "/images/search", Handle: h.search},
		{Method: "GET", Path: "/distribution/{name...}/json", Handle: h.distribution},
		{Method: "POST", Path: "/images/create", Handle: h.create},
		{Method: "POST", Path: "/images/load", Handle: h.load},
		{Method: "POST", Path: "/images/prune", Handle: h.prune},
		{Method: "GET", Path: "/images/get", Handle: h.save},
		{Method: "GET", Path: "/images/{name...}/get", Handle: h.save},
		{Method: "GET", Path: "/images/{name...}/json", Handle: h.inspect},
		{Method: "GET", Path: "/images/{name...}/history", Handle: h.history},
		{Method: "GET", Path: "/images/{name...}/attestations", Handle: h.attestations},
		{Method: "POST", Path: "/images/{name...}/push", Handle: h.push},
		{Method: "POST", Path: "/images/{name...}/tag", Handle: h.tag},
		{Method: "DELETE", Path: "/images/{name...}", Handle: h.remove},
	}
}

func (h *handlers) list(w http.ResponseWriter, r *wire.Request) error {
	f, err := r.Filters()
	if err != nil {
		return err
	}
	if name := r.Query.Get("filter"); name != "" && r.Version.Before(41) {
		if f == nil {
			f = filter.Args{}
		}
		f["reference"] = append(f["reference"], name)
	}
	o := objects.ImageListOptions{
		All:        r.Bool("all"),
		Manifests:  !r.Version.Before(47) && r.Bool("manifests"),
		SharedSize: !r.Version.Before(42) && r.Bool("shared-size"),
		Filters:    f,
	}
	all, err := h.backend.ImageList(r.Context(), o)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, summaries(all, r.Version))
}

func (h *handlers) inspect(w http.ResponseWriter, r *wire.Request) error {
	manifests := !r.Version.Before(48) && r.Bool("manifests")
	platform, err := r.PlatformJSON()
	if err != nil {
		return err
	}
	if r.Version.Before(49) {
		platform = nil
	}
	if manifests && platform != nil {
		return wire.Invalid("conflicting options: manifests and platform options are mutually exclusive")
	}
	img, err := h.backend.ImageInspect(r.Context(), r.Name(), platform, manifests)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, inspected(img, r.Version))
}

func (h *handlers) history(w http.ResponseWriter, r *wire.Request) error {
	platform, err := r.PlatformJSON()
	if err != nil {
		return err
	}
	if r.Version.Before(48) {
		platform = nil
	}
	items, err := h.backend.ImageHistory(r.Context(), r.Name(), platform)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, wire.NonNil(items))
}

// attestations answers with the in-toto statements about an image.
func (h *handlers) attestations(w http.ResponseWriter, r *wire.Request) error {
	platform, err := r.PlatformJSON()
	if err != nil {
		return err
	}
	types := slices.DeleteFunc(slices.Clone(r.Query["type"]), func(kind string) bool { return strings.TrimSpace(kind) == "" })
	all, err := h.backend.ImageAttestations(r.Context(), r.Name(), platform, types, r.Bool("statement"))
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, wire.NonNil(all))
}

func (h *handlers) tag(w http.ResponseWriter, r *wire.Request) error {
	target, err := named(r.Query.Get("repo"), r.Query.Get("tag"))
	if err != nil {
		return err
	}
	if _, digested := target.(reference.Digested); digested {
		return wire.Invalid("refusing to create a tag with a digest reference")
	}
	if err := h.backend.ImageTag(r.Context(), r.Name(), reference.TagNameOnly(target).String()); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (h *handlers) remove(w http.ResponseWriter, r *wire.Request) error {
	if len(r.Query["platforms"]) > 0 && !r.Version.Before(50) {
		wanted, err := r.PlatformsJSON("platforms")
		if err != nil {
			return err
		}
		done, err := h.backend.ImageRemovePlatforms(r.Context(), r.Name(), wanted, r.Bool("force"))
		if err != nil {
			return err
		}
		return wire.WriteJSON(w, http.StatusOK, wire.NonNil(done))
	}
	done, err := h.backend.ImageRemove(r.Context(), r.Name(), r.Bool("force"), r.Bool("noprune"))
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, wire.NonNil(done))
}

// distribution answers with what a reference refers to in its registry.
func (h *handlers) distribution(w http.ResponseWriter, r *wire.Request) error {
	ref, err := reference.ParseNormalizedNamed(r.Name())
	if err != nil {
		return wire.Invalid("%w", err)
	}
	auth, err := credentials(r.Header.Get(registry.AuthHeader))
	if err != nil {
		return err
	}
	found, err := h.backend.Distribution(r.Context(), reference.TagNameOnly(ref).String(), auth)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, found)
}

// search answers with repositories of a registry.
func (h *handlers) search(w http.ResponseWriter, r *wire.Request) error {
	f, err := r.Filters()
	if err != nil {
		return err
	}
	limit, err := r.Int("limit")
	if err != nil {
		return err
	}
	if limit == nil {
		limit = new(int)
	}
	auth, err := credentials(r.Header.Get(registry.AuthHeader))
	if err != nil {
		return err
	}
	found, err := h.backend.Search(r.Context(), r.Query.Get("term"), *limit, f, auth)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, wire.NonNil(found))
}

func (h *handlers) prune(w http.ResponseWriter, r *wire.Request) error {
	f, err := r.Filters()
	if err != nil {
		return err
	}
	report, err := h.backend.ImagesPrune(r.Context(), f)
	if err != nil {
		return err
	}
	if report.ImagesDeleted == nil {
		report.ImagesDeleted = []image.DeleteResponse{}
	}
	return wire.WriteJSON(w, http.StatusOK, report)
}
