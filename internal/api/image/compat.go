// SPDX-License-Identifier: Apache-2.0

package image

import (
	"encoding/json"

	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/storage"

	"holdfast/internal/api/wire"
	"holdfast/internal/engine/objects"
)

// legacySummary is an entry of the list before API 1.44.
type legacySummary struct {
	image.Summary
	VirtualSize int64
}

// summaries converts the list to the form of API version v.
func summaries(all []image.Summary, v wire.Version) any {
	out := make([]image.Summary, len(all))
	for i, s := range all {
		s.RepoTags, s.RepoDigests = wire.NonNil(s.RepoTags), wire.NonNil(s.RepoDigests)
		if v.Before(43) && len(s.RepoTags) == 0 {
			s.RepoTags = []string{"<none>:<none>"}
		}
		if v.Before(43) && len(s.RepoDigests) == 0 {
			s.RepoDigests = []string{"<none>@<none>"}
		}
		if v.Before(47) {
			s.Manifests = nil
		}
		if v.Before(48) {
			s.Descriptor = nil
		}
		if v.Before(51) {
			s.Containers = -1
		}
		out[i] = s
	}
	if !v.Before(44) {
		return out
	}
	old := make([]legacySummary, len(out))
	for i, s := range out {
		old[i] = legacySummary{s, s.Size}
	}
	return old
}

// legacyImage is inspect before API 1.52. A field here hides the field of the
// embedded type.
type legacyImage struct {
	image.InspectResponse
	Parent        string
	Comment       string
	DockerVersion string
	Author        string
	Created       string `json:",omitempty"`
	Config        any
	GraphDriver   storage.DriverData

	VirtualSize     *int64  `json:",omitempty"` // before 1.44
	Container       *string `json:",omitempty"` // before 1.45
	ContainerConfig any     `json:",omitempty"` // before 1.45
}

// legacyConfig are the fields that were sent even when empty.
type legacyConfig struct {
	*legacyContainerConfig // before 1.50
	User                   string
	ExposedPorts           map[string]struct{} `json:",omitempty"`
	Env                    []string
	Cmd                    []string
	Healthcheck            any  `json:",omitempty"`
	ArgsEscaped            bool `json:",omitempty"`
	Volumes                map[string]struct{}
	WorkingDir             string
	Entrypoint             []string
	OnBuild                []string
	Labels                 map[string]string
	StopSignal             string   `json:",omitempty"`
	Shell                  []string `json:",omitempty"`
}

// legacyContainerConfig are fields for containers that images never had.
type legacyContainerConfig struct {
	Hostname, Domainname                                               string
	AttachStdin, AttachStdout, AttachStderr, Tty, OpenStdin, StdinOnce bool
	Image                                                              string
}

// inspected converts an image to the form of API version v.
func inspected(img objects.ImageInspected, v wire.Version) any {
	img.RepoTags, img.RepoDigests = wire.NonNil(img.RepoTags), wire.NonNil(img.RepoDigests)
	if v.Before(53) {
		img.Identity = nil
	}
	if v.Before(48) {
		img.Descriptor, img.Manifests = nil, nil
	}
	if !v.Before(52) {
		img.GraphDriver = nil // only the image stores before containerd's set it
		return img
	}
	old := legacyImage{InspectResponse: img.InspectResponse, Parent: img.Parent, Comment: img.Comment, Author: img.Author, Created: img.Created}
	if img.GraphDriver != nil {
		old.GraphDriver = *img.GraphDriver
	}
	if v.Before(44) {
		old.VirtualSize = &img.Size
		if old.Created == "" {
			old.Created = "0001-01-01T00:00:00Z"
		}
	}
	if c := img.Config; c != nil {
		lc := legacyConfig{
			User: c.User, ExposedPorts: c.ExposedPorts, Env: c.Env, Cmd: c.Cmd,
			ArgsEscaped: c.ArgsEscaped, //lint:ignore SA1019 Older versions of the API have this field.
			Volumes:     c.Volumes, WorkingDir: c.WorkingDir, Entrypoint: c.Entrypoint, OnBuild: c.OnBuild,
			Labels: c.Labels, StopSignal: c.StopSignal, Shell: c.Shell,
		}
		if c.Healthcheck != nil {
			lc.Healthcheck = c.Healthcheck
		}
		if v.Before(50) {
			lc.legacyContainerConfig = &legacyContainerConfig{}
		}
		old.Config = lc
	}
	if v.Before(45) {
		var none string
		old.Container = &none
		old.ContainerConfig = json.RawMessage("null") // it was set by the builder before BuildKit
	}
	return old
}
