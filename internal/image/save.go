// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/errs"
)

// saved is an image to be saved, with the names that the archive gives it.
type saved struct {
	match
	names []string
}

// called returns the familiar names, or else the ID.
func (i saved) called() []string {
	if len(i.names) == 0 {
		return []string{i.id()}
	}
	return familiarNames(i.names)
}

// Save writes images as a tar of an OCI layout that older versions of Docker
// can read too. A name without a tag means all tags of the repository. wanted
// selects among the manifests of each image. Without it all complete ones are
// saved. begin is called when all images were found, before the first byte is
// written. Errors: not found for an image that is missing from the store or
// incomplete.
func (s *Store) Save(ctx context.Context, names []string, wanted []ocispec.Platform, begin func() io.Writer) error {
	var all []saved
	err := s.leasing.withLease(ctx, func(ctx context.Context) error {
		var err error
		if all, err = s.catalog.toSave(ctx, names); err != nil {
			return err
		}
		order := &wholeFirst{host: platforms.Default(), whole: map[string]bool{}}
		opts := []archive.ExportOpt{
			archive.WithPlatform(order), archive.WithSkipMissing(s.contents.content), archive.WithSkipNonDistributableBlobs(),
		}
		for _, p := range wanted {
			order.only = append(order.only, platforms.Only(p))
		}
		for _, i := range all {
			if err := s.leasing.lend(ctx, i.target); err != nil {
				return err
			}
			if err := s.wholeOf(ctx, i, wanted, order.whole); err != nil {
				return err
			}
			opts = append(opts, archive.WithManifest(plain(i.target), i.names...))
		}
		if err := archive.Export(ctx, s.contents.content, &late{begin: begin}, opts...); err != nil {
			return fmt.Errorf("save: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, i := range all {
		for range i.called() { // one for each name, as in Docker
			s.catalog.emitEvent(ctx, "save", i.id(), i.id(), i.target)
		}
	}
	return nil
}

// toSave finds the images of names. Each image is listed once, with all the
// names by which it was requested.
func (ca *catalog) toSave(ctx context.Context, names []string) ([]saved, error) {
	var all []saved
	add := func(m match, name string) {
		i := slices.IndexFunc(all, func(i saved) bool { return i.id() == m.id() })
		if i < 0 {
			i = len(all)
			all = append(all, saved{match: m})
		}
		if name != "" && !slices.Contains(all[i].names, name) {
			all[i].names = append(all[i].names, name)
		}
	}
	entries, err := ca.entries(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		found := false
		if named, err := reference.ParseNormalizedNamed(name); err == nil && reference.IsNameOnly(named) {
			for _, e := range entries {
				for _, full := range e.names {
					if tagged, err := reference.ParseNormalizedNamed(full); err == nil && tagged.Name() == named.Name() {
						add(match{entry: e}, full)
						found = true
					}
				}
			}
		}
		if found {
			continue
		}
		m, err := ca.find(ctx, name)
		if err != nil {
			return nil, err
		}
		if d, err := reference.ParseNormalizedNamed(name); err == nil {
			if _, digested := d.(reference.Digested); digested {
				m.ref = "" // as in Docker, an image named by digest is saved without a tag
			}
		}
		add(m, m.ref)
	}
	return all, nil
}

// wholeOf records the platforms for which an image is complete. It fails if
// there is none, or if one of those wanted is missing.
func (s *Store) wholeOf(ctx context.Context, i saved, wanted []ocispec.Platform, whole map[string]bool) error {
	called := i.called()[0]
	variants, err := s.contents.variants(ctx, i.target)
	if err != nil {
		return err
	}
	var here []ocispec.Platform
	for _, v := range variants {
		if v.attestation {
			continue
		}
		ok, err := s.contents.hasAll(ctx, v)
		if err != nil {
			return err
		}
		if ok {
			here = append(here, v.platform)
			whole[platforms.FormatAll(v.platform)] = true
		}
	}
	if len(here) == 0 {
		return errs.NotFound("image %s has no layers here; pull it again", called)
	}
	for _, p := range wanted {
		if !slices.ContainsFunc(here, platforms.Only(p).Match) {
			return errs.NotFound("image with reference %s was found but does not provide the specified platform (%s)", called, platforms.Format(p))
		}
	}
	return nil
}

// hasAll reports whether a variant's config and layers are all in the store.
func (ct *contents) hasAll(ctx context.Context, v variant) (bool, error) {
	if v.manifest == nil {
		return false, nil
	}
	for _, d := range append([]ocispec.Descriptor{v.manifest.Config}, v.manifest.Layers...) {
		if here, err := content.Exists(ctx, ct.content, d); err != nil || !here {
			return false, err
		}
	}
	return true, nil
}

// wholeFirst orders manifests for readers that know no index: complete ones
// first, and among them the best for the host. If only is set, other platforms
// are left out.
type wholeFirst struct {
	host  platforms.MatchComparer
	whole map[string]bool
	only  []platforms.MatchComparer
}

func (o *wholeFirst) Match(p ocispec.Platform) bool {
	return len(o.only) == 0 || slices.ContainsFunc(o.only, func(m platforms.MatchComparer) bool { return m.Match(p) })
}

func (o *wholeFirst) Less(a, b ocispec.Platform) bool {
	wa, wb := o.whole[platforms.FormatAll(platforms.Normalize(a))], o.whole[platforms.FormatAll(platforms.Normalize(b))]
	if wa != wb {
		return wa
	}
	return o.host.Less(a, b)
}

// late is a writer that calls begin at the first byte.
type late struct {
	begin func() io.Writer
	w     io.Writer
}

func (l *late) Write(p []byte) (int, error) {
	if l.w == nil {
		l.w = l.begin()
	}
	return l.w.Write(p)
}
