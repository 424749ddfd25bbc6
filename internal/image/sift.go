// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"holdfast/internal/errs"
)

// maxFiles bounds the files of a loaded archive, because each costs a
// transaction.
const maxFiles = 100_000

// maxName bounds a file's name in a loaded archive, in bytes. Names are kept in
// memory until the archive ends.
const maxName = 4096

// sift copies an archive of images from src to w, and refuses whatever would
// take unbounded memory where it is read: documents that are parsed whole, by
// their size and their number of values, and names. It reads src to its end,
// because the client writes it to the end.
func sift(src io.Reader, w io.Writer) error {
	in, out := tar.NewReader(src), tar.NewWriter(w)
	for files := 0; ; files++ {
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		switch {
		case err != nil:
			return err
		case files == maxFiles:
			return errs.Invalid("it has more than %d files", maxFiles)
		case isSparse(h):
			// It can claim any size, and docker save never writes one.
			return errs.Invalid("its %q is a sparse file", h.Name)
		case len(h.Name) > maxName || len(h.Linkname) > maxName:
			return errs.Invalid("it has a file with a name of %d bytes", max(len(h.Name), len(h.Linkname)))
		}
		// Other fields of an entry have no meaning for images.
		to := &tar.Header{Typeflag: h.Typeflag, Name: h.Name, Linkname: h.Linkname, Size: h.Size, Mode: 0o644}
		switch h.Typeflag {
		case tar.TypeReg:
		case tar.TypeSymlink:
			to.Size = 0
		default:
			continue
		}
		var body io.Reader = in
		switch path.Clean(h.Name) {
		case "manifest.json", ocispec.ImageLayoutFile, ocispec.ImageIndexFile:
			if h.Size > maxDocument {
				return errs.Invalid("its %s has %d bytes, more than the %d allowed", h.Name, h.Size, maxDocument)
			}
			raw, err := io.ReadAll(in)
			if err != nil {
				return err
			}
			if err := checkJSON(raw); err != nil {
				return errs.Invalid("its %s can't be used: %s", h.Name, err)
			}
			body = bytes.NewReader(raw)
		}
		if err := out.WriteHeader(to); err != nil {
			return err
		}
		if to.Size > 0 {
			if _, err := io.Copy(out, body); err != nil {
				return err
			}
		}
	}
	if err := out.Close(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, src)
	return err
}

func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// sifted returns the output of sift. Close waits until src is no longer used.
func sifted(src io.Reader) io.ReadCloser {
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.CloseWithError(sift(src, w))
	}()
	return &siftReader{r, done}
}

type siftReader struct {
	*io.PipeReader
	done chan struct{}
}

func (r *siftReader) Close() error {
	err := r.PipeReader.Close()
	<-r.done
	return err
}

// smallDocuments is a content store for libraries that read documents whole
// without checking their size. It refuses large ones.
type smallDocuments struct{ content.Store }

func (s smallDocuments) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	ra, err := s.Store.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	if images.IsConfigType(desc.MediaType) || images.IsManifestType(desc.MediaType) || images.IsIndexType(desc.MediaType) {
		if ra.Size() > maxDocument {
			return nil, errors.Join(errs.Invalid("%s %s has %d bytes, more than the %d allowed", desc.MediaType, desc.Digest, ra.Size(), maxDocument), ra.Close())
		}
		raw := make([]byte, ra.Size())
		if _, err := ra.ReadAt(raw, 0); err != nil && err != io.EOF {
			return nil, errors.Join(err, ra.Close())
		}
		if err := checkJSON(raw); err != nil {
			return nil, errors.Join(errs.Invalid("%s %s: %s", desc.MediaType, desc.Digest, err), ra.Close())
		}
	}
	return ra, nil
}

// errArchive explains why an archive can't be loaded.
func errArchive(ctx context.Context, err error) error {
	if isHostError(err) || ctx.Err() != nil {
		return fmt.Errorf("load: %w", err)
	}
	if errdefs.IsInvalidArgument(err) {
		return errs.Invalid("load: the archive can't be used: %s", err)
	}
	return errs.Invalid("load: the archive is neither from docker save nor an OCI layout: %s", err)
}
