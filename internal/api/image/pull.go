// SPDX-License-Identifier: Apache-2.0

package image

import (
	"net/http"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"

	"holdfast/internal/api/wire"
)

// create pulls an image (fromImage) or makes one from a root filesystem
// (fromSrc).
func (h *handlers) create(w http.ResponseWriter, r *wire.Request) error {
	switch {
	case r.Query.Get("fromImage") != "":
		return h.pull(w, r)
	case r.Query.Get("fromSrc") != "":
		return h.importImage(w, r)
	}
	return wire.Invalid("missing parameter: give \"fromImage\" to pull an image or \"fromSrc\" to import one")
}

func (h *handlers) pull(w http.ResponseWriter, r *wire.Request) error {
	// Old clients end the name with a colon for "pull --all-tags".
	ref, err := named(strings.TrimSuffix(r.Query.Get("fromImage"), ":"), r.Query.Get("tag"))
	if err != nil {
		return err
	}
	platform, err := r.Platform()
	if err != nil {
		return err
	}
	if r.Version.Before(32) {
		platform = nil
	}
	auth, err := credentials(r.Header.Get(registry.AuthHeader))
	if err != nil {
		return err
	}
	s := wire.NewStream(w, types.MediaTypeJSON)
	err = h.backend.ImagePull(r.Context(), ref.String(), platform, auth, reference.IsNameOnly(ref), s.Message)
	return s.Finish(err)
}

// push sends an image to its registry. Without a tag it sends all tags of the
// repository.
func (h *handlers) push(w http.ResponseWriter, r *wire.Request) error {
	ref, err := named(r.Name(), r.Query.Get("tag"))
	if err != nil {
		return err
	}
	platform, err := r.PlatformJSON()
	if err != nil {
		return err
	}
	if r.Version.Before(46) {
		platform = nil
	}
	auth, err := credentials(r.Header.Get(registry.AuthHeader))
	if err != nil {
		return err
	}
	s := wire.NewStream(w, types.MediaTypeJSON)
	return s.Finish(h.backend.ImagePush(r.Context(), ref.String(), platform, auth, reference.IsNameOnly(ref), s.Message))
}

// credentials reads the header X-Registry-Auth: JSON in base64url. It also
// accepts the standard alphabet and missing padding, which some clients send.
// nil means no credentials.
func credentials(header string) (*registry.AuthConfig, error) {
	auth, err := authconfig.Decode(header)
	if err != nil {
		s := strings.TrimRight(strings.NewReplacer("+", "-", "/", "_").Replace(header), "=")
		if n := len(s) % 4; n != 0 {
			s += strings.Repeat("=", 4-n)
		}
		var again error
		if auth, again = authconfig.Decode(s); again != nil {
			return nil, wire.Invalid("%w", err)
		}
	}
	if *auth == (registry.AuthConfig{}) {
		return nil, nil
	}
	return auth, nil
}

// quiet drops messages that only show progress.
func quiet(send func(jsonstream.Message)) func(jsonstream.Message) {
	return func(m jsonstream.Message) {
		if m.Progress == nil && m.Status == "" {
			send(m)
		}
	}
}
