package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// stalled is how long a download may bring nothing before its connection is
// given up and another one tried.
const stalled = 60 * time.Second

// firstBackoff is the wait before the second try; it doubles up to maxBackoff.
const (
	firstBackoff = 200 * time.Millisecond
	maxBackoff   = 5 * time.Second
)

var errStalled = fmt.Errorf("the registry sent nothing for %s", stalled)

// fetcher brings blobs into the content store.
type fetcher struct {
	store    *Store
	remote   remotes.Fetcher
	attempts int
	progress *progress
}

// fetch brings one blob, unless it is here. What a try brought is kept for the
// next one, which asks for the rest (RFC 9110, section 14). The descriptor
// bounds what is taken; its digest is verified.
func (f *fetcher) fetch(ctx context.Context, desc ocispec.Descriptor) error {
	if err := checkDescriptor(desc); err != nil {
		return err
	}
	if !images.IsNonDistributable(desc.MediaType) {
		desc.URLs = nil // only foreign layers may lead elsewhere
	}
	desc.Data = nil
	ref := "pull-" + desc.Digest.String()
	backoff := firstBackoff
	for attempt := 1; ; attempt++ {
		err := f.try(ctx, ref, desc)
		if err == nil || errdefs.IsAlreadyExists(err) {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if lies(err) {
			if aerr := f.store.content.Abort(ctx, ref); aerr != nil && !errdefs.IsNotFound(aerr) {
				f.store.log.Warn("a refused download was left behind", "digest", desc.Digest, "error", aerr)
			}
			what := "manifest"
			if images.IsLayerType(desc.MediaType) {
				what = "filesystem layer"
			} else if images.IsConfigType(desc.MediaType) {
				what = "image config"
			}
			return &kinded{fmt.Sprintf("%s verification failed for digest %s: %s", what, desc.Digest, err), errdefs.ErrDataLoss, err}
		}
		if final(err) || attempt >= f.attempts {
			return err
		}
		f.store.log.Info("download was cut, trying again", "digest", desc.Digest, "attempt", attempt, "error", err)
		if images.IsLayerType(desc.MediaType) {
			f.progress.status(shortID(desc.Digest), fmt.Sprintf("Retrying in %s", backoff))
		}
		timer := time.NewTimer(backoff)
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-timer.C:
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

func (f *fetcher) try(ctx context.Context, ref string, desc ocispec.Descriptor) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	w, err := content.OpenWriter(ctx, f.store.content, content.WithRef(ref), content.WithDescriptor(desc))
	if err != nil {
		return err
	}
	defer w.Close()
	st, err := w.Status()
	if err != nil {
		return err
	}
	if st.Offset > desc.Size {
		if err := w.Truncate(0); err != nil {
			return err
		}
	}
	if st.Offset == desc.Size {
		return w.Commit(ctx, desc.Size, desc.Digest)
	}
	body, err := f.remote.Fetch(ctx, desc)
	if err != nil {
		return err
	}
	defer body.Close()
	r := &download{body: body, stop: time.AfterFunc(stalled, func() { cancel(errStalled) })}
	defer r.stop.Stop()
	if images.IsLayerType(desc.MediaType) {
		id := shortID(desc.Digest)
		r.report = func(n int64) { f.progress.bytes(id, "Downloading", n, desc.Size) }
	}
	if err := content.Copy(ctx, w, r, desc.Size, desc.Digest); err != nil {
		if cause := context.Cause(ctx); cause == errStalled {
			return cause
		}
		return err
	}
	return nil
}

// download counts what comes and notices when nothing does.
type download struct {
	body   io.ReadCloser
	at     int64
	report func(int64)
	stop   *time.Timer
}

func (d *download) Read(p []byte) (int, error) {
	n, err := d.body.Read(p)
	if n > 0 {
		d.at += int64(n)
		d.stop.Reset(stalled)
		if d.report != nil {
			d.report(d.at)
		}
	}
	return n, err
}

// Seek goes to where an earlier try ended.
func (d *download) Seek(offset int64, whence int) (int64, error) {
	s, ok := d.body.(io.Seeker)
	if !ok {
		return 0, errors.New("the download can't be resumed")
	}
	at, err := s.Seek(offset, whence)
	if err == nil {
		d.at = at
	}
	return at, err
}

// checkDescriptor refuses what no blob can be.
func checkDescriptor(desc ocispec.Descriptor) error {
	if err := desc.Digest.Validate(); err != nil {
		return errInvalid("the image names a blob by the invalid digest %q: %s", desc.Digest, err)
	}
	if desc.Size <= 0 {
		return errInvalid("the image gives blob %s a size of %d bytes", desc.Digest, desc.Size)
	}
	if !images.IsLayerType(desc.MediaType) && desc.Size > maxDocument {
		return errInvalid("the image's %s %s has %d bytes, more than the %d allowed", desc.MediaType, desc.Digest, desc.Size, maxDocument)
	}
	return nil
}

// lies reports whether the registry sent something else than was asked for.
func lies(err error) bool { return errdefs.IsFailedPrecondition(err) }

// final reports whether another try can't help.
func final(err error) bool {
	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) {
		switch status.StatusCode {
		case http.StatusRequestTimeout, http.StatusTooManyRequests:
			return false
		}
		return status.StatusCode < 500
	}
	return errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) || errors.Is(err, docker.ErrInvalidAuthorization) || isHostError(err)
}
