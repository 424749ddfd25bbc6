// SPDX-License-Identifier: Apache-2.0

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
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/errs"
)

// stalled is how long a download may receive nothing. After that its connection
// is closed and the download is tried again.
const stalled = 60 * time.Second

// firstBackoff is the wait before the second try. It doubles with each try, up
// to maxBackoff.
const (
	firstBackoff = 200 * time.Millisecond
	maxBackoff   = 5 * time.Second
)

var errStalled = fmt.Errorf("the registry sent nothing for %s", stalled)

// fetcher downloads blobs into the content store.
type fetcher struct {
	contents *contents
	leasing  *leasing
	remote   remotes.Fetcher
	attempts int
	progress *progress
}

// fetch downloads one blob, unless it is in the store. What a failed try has
// received is kept; the next try requests the rest (RFC 9110, section 14). The
// descriptor's size bounds the download, and its digest is verified.
func (f *fetcher) fetch(ctx context.Context, desc ocispec.Descriptor) error {
	if err := checkDescriptor(desc); err != nil {
		return err
	}
	// An image's author must not choose which hosts the daemon connects to.
	// Docker on Linux also asks only the registry.
	desc.URLs = nil
	desc.Data = nil
	ref := "pull-" + desc.Digest.String()
	backoff := firstBackoff
	if err := f.leasing.keepPartial(ctx, ref, desc); err != nil {
		f.contents.log.Warn("the lease of a download could not be written: it starts from the beginning if the pull is interrupted", "digest", desc.Digest, "error", err)
	}
	continued := f.begun(ctx, ref)
	for attempt := 1; ; attempt++ {
		err := f.try(ctx, ref, desc)
		if errdefs.IsAlreadyExists(err) {
			if f.contents.intact(ctx, desc) {
				_ = f.leasing.dropPartial(ctx, desc) // on an error the lease expires by itself
				return nil
			}
			f.contents.log.Warn("a blob was damaged on the disk and is downloaded again", "digest", desc.Digest)
			if err = f.contents.discard(ctx, desc.Digest); err == nil {
				err = f.try(ctx, ref, desc)
			}
		}
		if err == nil {
			if err := f.leasing.dropPartial(ctx, desc); err != nil {
				f.contents.log.Warn("the lease of a download could not be deleted and stays until it expires", "digest", desc.Digest, "error", err)
			}
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if isWrongContent(err) {
			if aerr := f.contents.content.Abort(ctx, ref); aerr != nil && !errdefs.IsNotFound(aerr) {
				f.contents.log.Warn("a download with a wrong digest could not be removed", "digest", desc.Digest, "error", aerr)
			}
			if continued {
				// The wrong bytes may come from an earlier pull, or from a
				// power cut. Try once more from the beginning.
				continued = false
				continue
			}
			what := "manifest"
			if images.IsLayerType(desc.MediaType) {
				what = "filesystem layer"
			} else if images.IsConfigType(desc.MediaType) {
				what = "image config"
			}
			return &kinded{fmt.Sprintf("%s verification failed for digest %s: %s", what, desc.Digest, err), errdefs.ErrDataLoss, err}
		}
		if isPermanent(err) || attempt >= f.attempts {
			return err
		}
		f.contents.log.Info("download was interrupted, trying again", "digest", desc.Digest, "attempt", attempt, "error", err)
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

// begun reports whether an earlier pull has stored a part of a blob.
func (f *fetcher) begun(ctx context.Context, ref string) bool {
	st, err := f.contents.content.Status(ctx, ref)
	return err == nil && st.Offset > 0
}

// intact reports whether a blob that the store lists can be read. A document is
// parsed. A layer is verified when it is unpacked, so only the existence and
// length of its file are checked.
func (ct *contents) intact(ctx context.Context, desc ocispec.Descriptor) bool {
	if !images.IsLayerType(desc.MediaType) {
		_, err := ct.document(ctx, desc)
		return !errdefs.IsNotFound(err) && !errdefs.IsDataLoss(err)
	}
	ra, err := ct.content.ReaderAt(ctx, desc)
	if err != nil {
		return !errdefs.IsNotFound(err)
	}
	defer ra.Close()
	return ra.Size() == desc.Size
}

// discard removes a damaged blob, so that it can be written again.
func (ct *contents) discard(ctx context.Context, dgst digest.Digest) error {
	ct.docs.drop(dgst)
	if err := ct.content.Delete(ctx, dgst); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("discard damaged blob: %w", err)
	}
	if err := ct.blobsOnDisk.Delete(ctx, dgst); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("discard damaged blob: %w", err)
	}
	return nil
}

func (f *fetcher) try(ctx context.Context, ref string, desc ocispec.Descriptor) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	w, err := content.OpenWriter(ctx, f.contents.content, content.WithRef(ref), content.WithDescriptor(desc))
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

// download counts the bytes received and notices when none arrive.
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

// Seek continues where an earlier try ended.
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

// checkDescriptor refuses descriptors that no blob can have.
func checkDescriptor(desc ocispec.Descriptor) error {
	if err := desc.Digest.Validate(); err != nil {
		return errs.Invalid("the image names a blob by the invalid digest %q: %s", desc.Digest, err)
	}
	if desc.Size <= 0 {
		return errs.Invalid("the image gives blob %s a size of %d bytes", desc.Digest, desc.Size)
	}
	if !images.IsLayerType(desc.MediaType) && desc.Size > maxDocument {
		return errs.Invalid("the image's %s %s has %d bytes, more than the %d allowed", desc.MediaType, desc.Digest, desc.Size, maxDocument)
	}
	return nil
}

// isWrongContent reports whether the registry sent content that does not match the
// digest.
func isWrongContent(err error) bool { return errdefs.IsFailedPrecondition(err) }

// isPermanent reports whether another try is pointless.
func isPermanent(err error) bool {
	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) {
		switch status.StatusCode {
		case http.StatusRequestTimeout, http.StatusTooManyRequests:
			return false
		}
		return status.StatusCode < 500
	}
	return errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) || errors.Is(err, docker.ErrInvalidAuthorization) || isLed(err) || isHostError(err)
}
