// SPDX-License-Identifier: Apache-2.0

package container

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"

	"github.com/moby/moby/api/types/container"

	"holdfast/internal/api/wire"
	"holdfast/internal/engine"
)

// pathStatHeader carries the properties of a path, as JSON in base64.
const pathStatHeader = "X-Docker-Container-Path-Stat"

func archivePath(r *wire.Request) (string, error) {
	path := r.Query.Get("path")
	if path == "" {
		return "", wire.Invalid("bad parameter: path cannot be empty")
	}
	return path, nil
}

func setPathStat(h http.Header, st container.PathStat) error {
	raw, err := json.Marshal(st)
	if err == nil {
		h.Set(pathStatHeader, base64.StdEncoding.EncodeToString(raw))
	}
	return err
}

func (h *handlers) statPath(w http.ResponseWriter, r *wire.Request) error {
	path, err := archivePath(r)
	if err != nil {
		return err
	}
	st, err := h.backend.ContainerStatPath(r.Context(), r.Name(), path)
	if err != nil {
		return err
	}
	return setPathStat(w.Header(), st)
}

func (h *handlers) archive(w http.ResponseWriter, r *wire.Request) error {
	path, err := archivePath(r)
	if err != nil {
		return err
	}
	return wire.Tar(w, r, func(begin func() io.Writer) error {
		return h.backend.ContainerArchive(r.Context(), r.Name(), path, func(st container.PathStat) io.Writer {
			_ = setPathStat(w.Header(), st) // it has only strings, numbers and a time, so it always encodes
			return begin()
		})
	})
}

func (h *handlers) extract(w http.ResponseWriter, r *wire.Request) error {
	path, err := archivePath(r)
	if err != nil {
		return err
	}
	err = h.backend.ContainerExtract(r.Context(), r.Name(), path, engine.ExtractOptions{
		NoOverwriteDirNonDir: r.Bool("noOverwriteDirNonDir"),
		CopyUIDGID:           r.Bool("copyUIDGID"),
	}, wire.HeldBody(w, r))
	if err != nil {
		return wire.Early(w, r, err)
	}
	return nil
}

func (h *handlers) export(w http.ResponseWriter, r *wire.Request) error {
	return wire.Tar(w, r, func(begin func() io.Writer) error {
		return h.backend.ContainerExport(r.Context(), r.Name(), begin)
	})
}

func (h *handlers) changes(w http.ResponseWriter, r *wire.Request) error {
	all, err := h.backend.ContainerChanges(r.Context(), r.Name())
	if err != nil {
		return err
	}
	if len(all) == 0 {
		all = nil // null, as in Docker
	}
	return wire.WriteJSON(w, http.StatusOK, all)
}
