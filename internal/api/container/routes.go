// SPDX-License-Identifier: Apache-2.0

package container

import (
	"net/http"

	"github.com/moby/moby/api/types/container"

	"holdfast/internal/api/wire"
	"holdfast/internal/engine"
)

type handlers struct{ backend Backend }

// Routes returns the operations of this package.
func Routes(b Backend) []wire.Route {
	h := &handlers{b}
	return []wire.Route{
		{Method: "GET", Path: "/containers/json", Handle: h.list},
		{Method: "POST", Path: "/containers/create", Handle: h.create},
		{Method: "POST", Path: "/containers/prune", Handle: h.prune},
		{Method: "GET", Path: "/containers/{name...}/json", Handle: h.inspect},
		{Method: "GET", Path: "/containers/{name...}/top", Handle: h.top},
		{Method: "GET", Path: "/containers/{name...}/logs", Handle: h.logs},
		{Method: "GET", Path: "/containers/{name...}/stats", Handle: h.stats},
		{Method: "GET", Path: "/containers/{name...}/attach/ws", Handle: h.attachWebsocket},
		{Method: "HEAD", Path: "/containers/{name...}/archive", Handle: h.statPath},
		{Method: "GET", Path: "/containers/{name...}/archive", Handle: h.archive},
		{Method: "PUT", Path: "/containers/{name...}/archive", Handle: h.extract},
		{Method: "POST", Path: "/commit", Handle: h.commit},
		{Method: "GET", Path: "/containers/{name...}/changes", Handle: h.changes},
		{Method: "GET", Path: "/containers/{name...}/export", Handle: h.export},
		{Method: "POST", Path: "/containers/{name...}/attach", Handle: h.attach},
		{Method: "POST", Path: "/containers/{name...}/start", Handle: h.start},
		{Method: "POST", Path: "/containers/{name...}/stop", Handle: h.stop},
		{Method: "POST", Path: "/containers/{name...}/restart", Handle: h.restart},
		{Method: "POST", Path: "/containers/{name...}/kill", Handle: h.kill},
		{Method: "POST", Path: "/containers/{name...}/pause", Handle: h.pause},
		{Method: "POST", Path: "/containers/{name...}/unpause", Handle: h.unpause},
		{Method: "POST", Path: "/containers/{name...}/rename", Handle: h.rename},
		{Method: "POST", Path: "/containers/{name...}/update", Handle: h.update},
		{Method: "POST", Path: "/containers/{name...}/wait", Handle: h.wait},
		{Method: "POST", Path: "/containers/{name...}/resize", Handle: h.resize},
		{Method: "POST", Path: "/containers/{name...}/exec", Handle: h.execCreate},
		{Method: "DELETE", Path: "/containers/{name}", Handle: h.remove},
		{Method: "DELETE", Path: "/containers/{name}/{alias}", Handle: h.remove}, // the name is that of a link
		{Method: "POST", Path: "/exec/{name}/start", Handle: h.execStart},
		{Method: "POST", Path: "/exec/{name}/resize", Handle: h.execResize},
		{Method: "GET", Path: "/exec/{name}/json", Handle: h.execInspect},
	}
}

// done answers an operation that has no result.
func done(w http.ResponseWriter, err error) error {
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}

func (h *handlers) list(w http.ResponseWriter, r *wire.Request) error {
	f, err := r.Filters()
	if err != nil {
		return err
	}
	o := engine.ListOptions{All: r.Bool("all"), Size: r.Bool("size"), Filters: f}
	limit, err := r.Int("limit")
	if err != nil {
		return err
	}
	if limit != nil && *limit > 0 { // the command line sends -1 for no limit
		o.Limit = *limit
	}
	all, err := h.backend.ContainerList(r.Context(), o)
	if err != nil {
		return err
	}
	return writeSummaries(w, summaries(all, r.Version))
}

func (h *handlers) inspect(w http.ResponseWriter, r *wire.Request) error {
	c, err := h.backend.ContainerInspect(r.Context(), r.Name(), r.Bool("size"))
	if err != nil {
		return err
	}
	if !r.Version.Before(52) {
		return wire.WriteJSON(w, http.StatusOK, inspected(c, nil, r.Version))
	}
	mac, err := h.backend.ContainerMAC(c.ID)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, inspected(c, mac, r.Version))
}

func (h *handlers) start(w http.ResponseWriter, r *wire.Request) error {
	// The shortest JSON object with a field has 7 bytes; some clients send {}
	// or null.
	if r.ContentLength > 7 || r.ContentLength < 0 {
		return wire.Invalid("starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
	}
	if r.Query.Get("checkpoint") != "" {
		return wire.Invalid("a container can't be started from a checkpoint: checkpoints are not supported")
	}
	return done(w, h.backend.ContainerStart(r.Context(), r.Name()))
}

func stopOptions(r *wire.Request) (engine.StopOptions, error) {
	timeout, err := r.Int("t")
	if err != nil {
		return engine.StopOptions{}, err
	}
	o := engine.StopOptions{Timeout: timeout}
	if !r.Version.Before(42) {
		o.Signal = r.Query.Get("signal")
	}
	return o, nil
}

func (h *handlers) stop(w http.ResponseWriter, r *wire.Request) error {
	o, err := stopOptions(r)
	if err != nil {
		return err
	}
	return done(w, h.backend.ContainerStop(r.Context(), r.Name(), o))
}

func (h *handlers) restart(w http.ResponseWriter, r *wire.Request) error {
	o, err := stopOptions(r)
	if err != nil {
		return err
	}
	return done(w, h.backend.ContainerRestart(r.Context(), r.Name(), o))
}

func (h *handlers) kill(w http.ResponseWriter, r *wire.Request) error {
	return done(w, h.backend.ContainerKill(r.Context(), r.Name(), r.Query.Get("signal")))
}

func (h *handlers) pause(w http.ResponseWriter, r *wire.Request) error {
	return done(w, h.backend.ContainerPause(r.Context(), r.Name()))
}

func (h *handlers) unpause(w http.ResponseWriter, r *wire.Request) error {
	return done(w, h.backend.ContainerUnpause(r.Context(), r.Name()))
}

func (h *handlers) rename(w http.ResponseWriter, r *wire.Request) error {
	return done(w, h.backend.ContainerRename(r.Context(), r.Name(), r.Query.Get("name")))
}

func (h *handlers) update(w http.ResponseWriter, r *wire.Request) error {
	var u container.UpdateConfig
	if ok, err := r.Decode(w, &u); err != nil {
		return err
	} else if !ok {
		return wire.Invalid("invalid JSON: got EOF while reading request body")
	}
	updateFromOlder(&u, r.Version)
	res, err := h.backend.ContainerUpdate(r.Context(), r.Name(), u)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, res)
}

func (h *handlers) remove(w http.ResponseWriter, r *wire.Request) error {
	o := engine.RemoveOptions{Force: r.Bool("force"), Volumes: r.Bool("v"), Link: r.Bool("link")}
	name := r.Name()
	if alias := r.Vars["alias"]; alias != "" {
		name += "/" + alias
	}
	return done(w, h.backend.ContainerRemove(r.Context(), name, o))
}

func (h *handlers) resize(w http.ResponseWriter, r *wire.Request) error {
	height, width, err := r.Size()
	if err != nil {
		return err
	}
	return h.backend.ContainerResize(r.Context(), r.Name(), height, width)
}

func (h *handlers) top(w http.ResponseWriter, r *wire.Request) error {
	t, err := h.backend.ContainerTop(r.Context(), r.Name(), r.Query.Get("ps_args"))
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, t)
}

func (h *handlers) prune(w http.ResponseWriter, r *wire.Request) error {
	f, err := r.Filters()
	if err != nil {
		return err
	}
	report, err := h.backend.ContainersPrune(r.Context(), f)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, report)
}
