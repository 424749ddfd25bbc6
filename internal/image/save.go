package image

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// saved is an image that goes into an archive under names.
type saved struct {
	match
	names []string
}

// called are the names in short, or else the ID.
func (i saved) called() []string {
	if len(i.names) == 0 {
		return []string{i.id()}
	}
	return familiarNames(i.names)
}

// Save writes images as a tar of an OCI layout that older Dockers read too. A
// name without a tag means all tags of the repository. wanted picks among the
// manifests of each image; none takes all that are here whole. begin is called
// when all was found, before the first byte. Errors: not found for what isn't
// here, or not whole.
func (s *Store) Save(ctx context.Context, names []string, wanted []ocispec.Platform, begin func() io.Writer) error {
	var all []saved
	err := s.withLease(ctx, func(ctx context.Context) error {
		var err error
		if all, err = s.toSave(ctx, names); err != nil {
			return err
		}
		order := &wholeFirst{host: platforms.Default(), whole: map[string]bool{}}
		opts := []archive.ExportOpt{
			archive.WithPlatform(order), archive.WithSkipMissing(s.content), archive.WithSkipNonDistributableBlobs(),
		}
		for _, p := range wanted {
			order.only = append(order.only, platforms.Only(p))
		}
		for _, i := range all {
			if err := s.lend(ctx, i.target); err != nil {
				return err
			}
			if err := s.wholeOf(ctx, i, wanted, order.whole); err != nil {
				return err
			}
			opts = append(opts, archive.WithManifest(plain(i.target), i.names...))
		}
		if err := archive.Export(ctx, s.content, &late{begin: begin}, opts...); err != nil {
			return fmt.Errorf("save: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, i := range all {
		for _, name := range i.called() {
			s.onEvent("save", i.id(), name, nil)
		}
	}
	return nil
}

// toSave finds the images of names, each once and with all names it was asked
// for by.
func (s *Store) toSave(ctx context.Context, names []string) ([]saved, error) {
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
	entries, err := s.entries(ctx)
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
		m, err := s.find(ctx, name)
		if err != nil {
			return nil, err
		}
		add(m, m.ref)
	}
	return all, nil
}

// lend keeps an image from the collector for as long as the context's lease is.
func (s *Store) lend(ctx context.Context, target ocispec.Descriptor) error {
	lease, _ := leases.FromContext(ctx)
	return s.leases.AddResource(ctx, leases.Lease{ID: lease}, leases.Resource{ID: target.Digest.String(), Type: "content"})
}

// wholeOf notes the platforms of which an image has everything. It is an error
// if that is none, or lacks one of those wanted.
func (s *Store) wholeOf(ctx context.Context, i saved, wanted []ocispec.Platform, whole map[string]bool) error {
	called := i.called()[0]
	variants, err := s.variants(ctx, i.target)
	if err != nil {
		return err
	}
	var here []ocispec.Platform
	for _, v := range variants {
		if v.attestation {
			continue
		}
		ok, err := s.hasAll(ctx, v)
		if err != nil {
			return err
		}
		if ok {
			here = append(here, v.platform)
			whole[platforms.FormatAll(v.platform)] = true
		}
	}
	if len(here) == 0 {
		return errNotFound("image %s has no layers here; pull it again", called)
	}
	for _, p := range wanted {
		if !slices.ContainsFunc(here, platforms.Only(p).Match) {
			return errNotFound("image with reference %s was found but does not provide the specified platform (%s)", called, platforms.Format(p))
		}
	}
	return nil
}

// hasAll reports whether all that a variant consists of is here.
func (s *Store) hasAll(ctx context.Context, v variant) (bool, error) {
	if v.manifest == nil {
		return false, nil
	}
	for _, d := range append([]ocispec.Descriptor{v.manifest.Config}, v.manifest.Layers...) {
		if here, err := content.Exists(ctx, s.content, d); err != nil || !here {
			return false, err
		}
	}
	return true, nil
}

// wholeFirst puts, for readers that know no index, the manifest first that is
// here whole and fits the host best. With only it leaves others out.
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

// late is a writer that begins with the first byte.
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
