// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"holdfast/internal/api/wire"
	"holdfast/internal/engine"
)

func (h *handlers) create(w http.ResponseWriter, r *wire.Request) error {
	body, err := r.ReadBody(w)
	if err != nil {
		return err
	}
	if body == nil {
		return wire.Invalid("invalid JSON: got EOF while reading request body")
	}
	var req container.CreateRequest
	if err := wire.DecodeBytes(listsFromStrings(body, "Cmd", "Entrypoint"), &req); err != nil {
		return err
	}
	if req.Config == nil {
		return wire.Invalid("config cannot be empty in order to create a container")
	}
	platform, err := r.Platform()
	if err != nil {
		return err
	}
	if r.Version.Before(41) {
		platform = nil
	}
	if req.HostConfig == nil {
		req.HostConfig = &container.HostConfig{}
	}
	if req.NetworkingConfig == nil {
		req.NetworkingConfig = &network.NetworkingConfig{}
	}
	if err := requestFromOlder(&req, r.Version); err != nil {
		return err
	}
	warning, err := containerMAC(&req, body, r.Version)
	if err != nil {
		return err
	}
	res, err := h.backend.ContainerCreate(r.Context(), engine.CreateOptions{
		Name:     r.Query.Get("name"),
		Platform: platform,
		Request:  req,
	})
	if err != nil {
		return err
	}
	res.Warnings = wire.NonNil(res.Warnings)
	if warning != "" {
		res.Warnings = append(res.Warnings, warning)
	}
	return wire.WriteJSON(w, http.StatusCreated, res)
}

// listsFromStrings turns the named top-level fields into lists if they are
// strings: the API accepts a command in both forms, its Go types only the list.
// A body that is not an object is returned unchanged, so that the decoder
// reports it.
func listsFromStrings(body []byte, fields ...string) []byte {
	var members map[string]json.RawMessage
	if json.Unmarshal(body, &members) != nil {
		return body
	}
	changed := false
	for name, value := range members {
		for _, field := range fields {
			if !strings.EqualFold(name, field) || !bytes.HasPrefix(bytes.TrimSpace(value), []byte(`"`)) {
				continue
			}
			members[name] = append(append([]byte{'['}, value...), ']')
			changed = true
		}
	}
	if !changed {
		return body
	}
	out, err := json.Marshal(members)
	if err != nil {
		return body
	}
	return out
}
