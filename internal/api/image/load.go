// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types"
	"github.com/moby/moby/api/types/jsonstream"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/api/wire"
)

func (h *handlers) load(w http.ResponseWriter, r *wire.Request) error {
	platforms, err := archivePlatforms(r)
	if err != nil {
		return err
	}
	if err := duplex(w); err != nil {
		return err
	}
	s := wire.NewStream(w, types.MediaTypeJSON)
	progress := s.Message
	if r.BoolOr("quiet", true) {
		progress = quiet(progress)
	}
	return s.Finish(h.backend.ImageLoad(r.Context(), r.Body, platforms, progress))
}

// archivePlatforms are the platforms to read from an archive, or to write into
// one.
func archivePlatforms(r *wire.Request) ([]ocispec.Platform, error) {
	platforms, err := r.PlatformsJSON("platform")
	switch {
	case err != nil:
		return nil, err
	case r.Version.Before(48):
		return nil, nil
	case r.Version.Before(52) && len(platforms) > 1:
		return nil, wire.Invalid("specifying more than one platform needs API version 1.52 or newer")
	}
	return platforms, nil
}

// save answers with an archive of one image, given in the path, or of several.
func (h *handlers) save(w http.ResponseWriter, r *wire.Request) error {
	names := r.Query["names"]
	if name := r.Name(); name != "" {
		names = []string{name}
	}
	if len(names) == 0 {
		return wire.Invalid("missing parameter: give the images to save as \"names\"")
	}
	platforms, err := archivePlatforms(r)
	if err != nil {
		return err
	}
	return wire.Tar(w, r, func(begin func() io.Writer) error {
		return h.backend.ImageSave(r.Context(), names, platforms, begin)
	})
}

// importImage makes an image from a root filesystem: from the request's body if
// fromSrc is "-", else from its URL.
func (h *handlers) importImage(w http.ResponseWriter, r *wire.Request) error {
	var ref string
	if repo := r.Query.Get("repo"); repo != "" {
		n, err := named(repo, r.Query.Get("tag"))
		if err != nil {
			return err
		}
		if _, digested := n.(reference.Digested); digested {
			return wire.Invalid("cannot import digest reference")
		}
		ref = reference.TagNameOnly(n).String()
	}
	platform, err := r.Platform()
	if err != nil {
		return err
	}
	if r.Version.Before(32) {
		platform = nil
	}
	from, src := r.Query.Get("fromSrc"), io.Reader(r.Body)
	if from != "-" {
		body, err := download(r.Context(), from)
		if err != nil {
			return err
		}
		defer body.Close()
		src = body
	} else if err := duplex(w); err != nil {
		return err
	}
	s := wire.NewStream(w, types.MediaTypeJSON)
	if from != "-" {
		s.Message(jsonstream.Message{Status: "Downloading from " + from})
	}
	message := r.Query.Get("message")
	if message == "" {
		message = "Imported from " + from
	}
	id, err := h.backend.ImageImport(r.Context(), src, ref, message, r.Query["changes"], platform)
	if err != nil {
		return s.Finish(err)
	}
	s.Message(jsonstream.Message{Status: id})
	return nil
}

// download opens a root filesystem at a URL. A URL without a scheme gets
// http://, as in dockerd.
func download(ctx context.Context, from string) (io.ReadCloser, error) {
	if !strings.Contains(from, "://") {
		from = "http://" + from
	}
	u, err := url.Parse(from)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, wire.Invalid("invalid import source %q: want - for the request's body, or an http or https URL", from)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, wire.Invalid("invalid import source %q: %w", from, err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("download the root filesystem: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		res.Body.Close()
		return nil, fmt.Errorf("download the root filesystem from %s: the server answered %s: %w", from, res.Status, errdefs.ErrUnknown)
	}
	return res.Body, nil
}

// duplex lets the answer begin while the body is still being read. Without it
// net/http closes the body at the first line of progress.
func duplex(w http.ResponseWriter) error {
	if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
		return fmt.Errorf("answer while reading the body: %w", err)
	}
	return nil
}
