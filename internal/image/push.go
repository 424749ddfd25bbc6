package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/auxprogress"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

// Push sends an image to the registry of its name, or with all every tag of the
// repository. platform picks one manifest; nil sends all of the image, or, where
// not all of it is here, the manifest that fits the host. Messages are Docker's,
// and the last one of a tag carries its digest. Errors: not found for what isn't
// here or what the registry denies, unavailable when it can't be reached.
func (s *Store) Push(ctx context.Context, ref string, platform *ocispec.Platform, auth *registry.AuthConfig, all bool, fn func(jsonstream.Message)) error {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return errInvalid("invalid reference format: %q: %s", ref, err)
	}
	if _, digested := named.(reference.Digested); digested {
		return errInvalid("cannot push a digest reference")
	}
	if all && !reference.IsNameOnly(named) {
		return errInvalid("tag can't be used with --all-tags/-a")
	}
	if !all {
		named = reference.TagNameOnly(named)
	}
	targets, err := s.toSave(s.ctx(ctx), []string{named.String()})
	if errdefs.IsNotFound(err) {
		return errNotFound("An image does not exist locally with the tag: %s", reference.FamiliarString(named))
	} else if err != nil {
		return err
	}
	p := newProgress(fn)
	p.line(fmt.Sprintf("The push refers to repository [%s]", named.Name()))
	for _, t := range targets {
		for _, name := range t.names {
			if err := s.pushOne(ctx, t.match, name, platform, auth, p); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Store) pushOne(ctx context.Context, m match, name string, platform *ocispec.Platform, auth *registry.AuthConfig, p *progress) error {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return errInvalid("invalid reference format: %q: %s", name, err)
	}
	tagged, ok := named.(reference.NamedTagged)
	if !ok {
		return nil // known by its digest alone
	}
	short := reference.FamiliarString(named)
	conf := s.registry.Load()
	var target ocispec.Descriptor
	err = s.withLease(ctx, func(ctx context.Context) error {
		if err := s.lend(ctx, m.target); err != nil {
			return err
		}
		if target, err = s.toPush(ctx, m, short, platform); err != nil {
			return err
		}
		// With the digest only the target gets the tag, not each manifest of it.
		remote, err := conf.resolver(auth).Pusher(ctx, name+"@"+target.Digest.String())
		if err != nil {
			return errPush(reference.FamiliarName(named), short, err)
		}
		to := &pusher{remote, p}
		err = remotes.PushContent(ctx, to, target, s.content, semaphore.NewWeighted(int64(conf.maxUploads)), platforms.All,
			func(h images.Handler) images.Handler { return remotes.SkipNonDistributableBlobs(h.Handle) })
		if err != nil {
			return errPush(reference.FamiliarName(named), short, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	p.line(fmt.Sprintf("%s: digest: %s size: %d", tagged.Tag(), target.Digest, target.Size))
	p.aux(struct {
		Tag    string
		Digest string
		Size   int64
	}{tagged.Tag(), target.Digest.String(), target.Size})
	if target.Digest != m.target.Digest && platform == nil {
		p.aux(auxprogress.ManifestPushedInsteadOfIndex{ManifestPushedInsteadOfIndex: true, OriginalIndex: plain(m.target), SelectedManifest: target})
	}
	s.onEvent("push", short, reference.FamiliarName(named), nil)
	return nil
}

// toPush is what of an image is sent.
func (s *Store) toPush(ctx context.Context, m match, called string, platform *ocispec.Platform) (ocispec.Descriptor, error) {
	all, err := s.variants(ctx, m.target)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var whole []variant
	for _, v := range all {
		ok, err := s.hasAll(ctx, v)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		if ok {
			whole = append(whole, v)
		}
	}
	if platform == nil && len(whole) == len(all) && len(all) > 0 {
		return plain(m.target), nil
	}
	// What fits nobody can run, as what speaks of other manifests.
	whole = slices.DeleteFunc(whole, func(v variant) bool { return v.attestation })
	if len(whole) == 0 {
		return ocispec.Descriptor{}, errNotFound("image %s has no layers here; pull it again", called)
	}
	v, err := s.choose(ctx, called, whole, platform)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := plain(v.desc)
	d.Platform = &v.platform
	return d, nil
}

// errPush turns what a registry answered to a push into Docker's words.
func errPush(name, ref string, err error) error {
	if errRefused(name, ref, err) != nil && !isCancelled(err) {
		return &kinded{fmt.Sprintf("push access denied for %s: denied: requested access to the resource is denied", name), errdefs.ErrPermissionDenied, err}
	}
	if isCancelled(err) || errdefs.IsNotFound(err) || isHostError(err) {
		return err
	}
	return &kinded{fmt.Sprintf("failed to push %q: %s", ref, cleaned(err)), errdefs.ErrUnavailable, err}
}

func isCancelled(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// pusher tells how each layer goes.
type pusher struct {
	remotes.Pusher
	progress *progress
}

func (u *pusher) Push(ctx context.Context, desc ocispec.Descriptor) (content.Writer, error) {
	layer := images.IsLayerType(desc.MediaType)
	id := shortID(desc.Digest)
	if layer {
		u.progress.status(id, "Preparing")
	}
	w, err := u.Pusher.Push(ctx, desc)
	if !layer {
		return w, err
	}
	if errdefs.IsAlreadyExists(err) {
		u.progress.status(id, "Layer already exists")
	}
	if err != nil {
		return w, err
	}
	return &upload{Writer: w, progress: u.progress, id: id, total: desc.Size}, nil
}

type upload struct {
	content.Writer
	progress    *progress
	id          string
	sent, total int64
}

func (w *upload) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.sent += int64(n)
	w.progress.bytes(w.id, "Pushing", w.sent, w.total)
	return n, err
}

func (w *upload) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	err := w.Writer.Commit(ctx, size, expected, opts...)
	if err == nil {
		w.progress.status(w.id, "Pushed")
	}
	return err
}

// aux sends what programs read.
func (p *progress) aux(v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		return // values made here: they are always JSON
	}
	p.send(jsonstream.Message{Progress: &jsonstream.Progress{}, Aux: (*json.RawMessage)(&raw)})
}
