// SPDX-License-Identifier: Apache-2.0

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
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/auxprogress"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"holdfast/internal/errs"
)

// Push sends an image to the registry of its name or, with all, every tag of
// the repository. platform selects one manifest. nil sends the whole image or,
// if parts of it are missing from the store, the manifest that fits the host.
// Messages are Docker's, and the last one of a tag carries its digest. Errors:
// not found for an image that is not in the store or that the registry denies,
// unavailable if the registry can't be reached.
func (s *Store) Push(ctx context.Context, ref string, platform *ocispec.Platform, auth *registry.AuthConfig, all bool, fn func(jsonstream.Message)) error {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return errs.Invalid("%s", err)
	}
	if _, digested := named.(reference.Digested); digested {
		return errs.Invalid("cannot push a digest reference")
	}
	if all && !reference.IsNameOnly(named) {
		return errs.Invalid("tag can't be used with --all-tags/-a")
	}
	if !all {
		named = reference.TagNameOnly(named)
	}
	targets, err := s.catalog.toSave(s.ctx(ctx), []string{named.String()})
	if errdefs.IsNotFound(err) && all {
		return errs.NotFound("An image does not exist locally with the tag: %s", reference.FamiliarName(named))
	} else if errdefs.IsNotFound(err) {
		return errs.NotFound("tag does not exist: %s", reference.FamiliarString(named))
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
		return errs.Invalid("%s", err)
	}
	tagged, ok := named.(reference.NamedTagged)
	if !ok {
		return nil // named by its digest alone
	}
	short := reference.FamiliarString(named)
	conf := s.remote.registry.Load()
	var target ocispec.Descriptor
	err = s.leasing.withLease(ctx, func(ctx context.Context) error {
		if err := s.leasing.lend(ctx, m.target); err != nil {
			return err
		}
		if target, err = s.toPush(ctx, m, short, platform); err != nil {
			return err
		}
		// With the digest in the reference only the target gets the tag, and
		// not each of its manifests.
		tracker := docker.NewInMemoryTracker()
		remote, err := conf.tracking(auth, tracker).Pusher(ctx, name+"@"+target.Digest.String())
		if err != nil {
			return errPush(reference.FamiliarName(named), short, err)
		}
		to := &pusher{remote, p, tracker}
		err = remotes.PushContent(ctx, to, target, s.contents.content, semaphore.NewWeighted(int64(conf.maxUploads)), platforms.All,
			func(h images.Handler) images.Handler { return remotes.SkipNonDistributableBlobs(h.Handle) })
		if err != nil {
			return errPush(reference.FamiliarName(named), short, err)
		}
		return s.contents.sourced(ctx, target, named)
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
	s.catalog.emitEvent(ctx, "push", short, reference.FamiliarName(named), m.target)
	return nil
}

// toPush chooses which part of an image to send.
func (s *Store) toPush(ctx context.Context, m match, called string, platform *ocispec.Platform) (ocispec.Descriptor, error) {
	all, err := s.contents.variants(ctx, m.target)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var whole []variant
	for _, v := range all {
		ok, err := s.contents.hasAll(ctx, v)
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
	// Only an image that can run on some platform is sent, so no attestations.
	whole = slices.DeleteFunc(whole, func(v variant) bool { return v.attestation })
	if len(whole) == 0 {
		return ocispec.Descriptor{}, errs.NotFound("image %s has no layers here; pull it again", called)
	}
	v, err := s.layers.choose(ctx, called, whole, platform)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := plain(v.desc)
	d.Platform = &v.platform
	return d, nil
}

// errPush turns a registry's answer to a push into Docker's message.
func errPush(name, ref string, err error) error {
	var withheld *errWithheld
	if errors.As(err, &withheld) || isLed(err) {
		return &kinded{fmt.Sprintf("failed to push %q: %s", ref, cleaned(err)), errdefs.ErrPermissionDenied, err}
	}
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

// pusher reports the progress of each layer.
type pusher struct {
	remotes.Pusher
	progress *progress
	tracker  docker.StatusTracker
}

func (u *pusher) Push(ctx context.Context, desc ocispec.Descriptor) (content.Writer, error) {
	layer := images.IsLayerType(desc.MediaType)
	id := shortID(desc.Digest)
	if layer {
		u.progress.status(id, "Waiting")
	}
	w, err := u.Pusher.Push(ctx, desc)
	if !layer {
		return w, err
	}
	if errdefs.IsAlreadyExists(err) {
		u.progress.status(id, u.found(ctx, desc))
	}
	if err != nil {
		return w, err
	}
	return &upload{Writer: w, progress: u.progress, id: id, total: desc.Size}, nil
}

// found returns the status of a layer that the registry already has.
func (u *pusher) found(ctx context.Context, desc ocispec.Descriptor) string {
	status, err := u.tracker.GetStatus(remotes.MakeRefKey(ctx, desc))
	if err != nil || status.MountedFrom == "" {
		return "Layer already exists"
	}
	from := status.MountedFrom
	if named, err := reference.ParseNormalizedNamed(from); err == nil {
		from = reference.Path(named)
	}
	return "Mounted from " + from
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

// aux sends data meant for programs.
func (p *progress) aux(v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		return // the values are ours and always encode
	}
	p.send(jsonstream.Message{Progress: &jsonstream.Progress{}, Aux: (*json.RawMessage)(&raw)})
}
