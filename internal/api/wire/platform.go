// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/json"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Platform reads the parameter "platform" in the form os[/arch[/variant]],
// which create and pull use. It returns nil if it is absent.
func (r *Request) Platform() (*ocispec.Platform, error) {
	s := r.Query.Get("platform")
	if s == "" {
		return nil, nil
	}
	if s[0] == '{' {
		return parsePlatform(s)
	}
	p, err := platforms.Parse(s)
	if err != nil {
		return nil, Invalid("invalid platform %q: want os[/arch[/variant]], such as linux/arm64: %w", s, err)
	}
	return &p, nil
}

// PlatformsJSON reads every occurrence of a parameter that holds a platform as
// a JSON object, which inspect, history and load use.
func (r *Request) PlatformsJSON(name string) ([]ocispec.Platform, error) {
	var all []ocispec.Platform
	for _, s := range r.Query[name] {
		if s == "" {
			continue
		}
		p, err := parsePlatform(s)
		if err != nil {
			return nil, err
		}
		all = append(all, *p)
	}
	return all, nil
}

// PlatformJSON is PlatformsJSON for operations that accept at most one.
func (r *Request) PlatformJSON() (*ocispec.Platform, error) {
	all, err := r.PlatformsJSON("platform")
	if err != nil || len(all) == 0 {
		return nil, err
	}
	if len(all) > 1 {
		return nil, Invalid("specifying more than one platform is not supported here")
	}
	return &all[0], nil
}

func parsePlatform(s string) (*ocispec.Platform, error) {
	var p ocispec.Platform
	if err := json.Unmarshal([]byte(s), &p); err != nil {
		return nil, Invalid("failed to parse platform %q: want a JSON object such as {\"os\":\"linux\",\"architecture\":\"arm64\"}: %w", s, err)
	}
	if p.OS == "" || p.Architecture == "" {
		return nil, Invalid("invalid platform %q: both OS and Architecture must be provided", s)
	}
	n := platforms.Normalize(p)
	return &n, nil
}
