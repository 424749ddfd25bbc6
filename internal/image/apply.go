// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	tararchive "github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	dockercompression "github.com/moby/go-archive/compression"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"holdfast/internal/errs"
)

// maxWindow bounds, in bytes, how far back a zstd stream may refer, because the
// whole window is held in memory. It is the default limit of the zstd command.
const maxWindow = 128 << 20

// applier unpacks one layer and reports its progress. It does what containerd's
// file system applier does, and limits what a layer can ask for.
type applier struct {
	store    content.Provider
	progress *progress
}

// Apply unpacks the layer desc onto a snapshot's mounts, and returns the digest
// and size of its tar. Every error is a layerError.
func (a applier) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, _ ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	d, err := a.apply(ctx, desc, mounts)
	if err != nil {
		return d, &layerError{err}
	}
	a.progress.status(shortID(desc.Digest), "Pull complete")
	return d, nil
}

func (a applier) apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount) (ocispec.Descriptor, error) {
	none := ocispec.Descriptor{}
	blob, err := a.store.ReaderAt(ctx, desc)
	if err != nil {
		return none, err
	}
	defer blob.Close()
	id := shortID(desc.Digest)
	in := &counted{r: content.NewReader(blob), report: func(n int64) { a.progress.bytes(id, "Extracting", n, desc.Size) }}
	compressed, err := images.DiffCompression(ctx, desc.MediaType)
	if err != nil {
		return none, err
	}
	var out io.Reader = in
	if compressed != "" {
		stream, err := decompress(in)
		if err != nil {
			return none, err
		}
		defer stream.Close()
		out = stream
	}
	sum := digest.Canonical.Digester()
	whole := readAhead(out, sum.Hash())
	defer whole.Close()
	layer := &counted{r: whole}
	dir, err := applyTar(ctx, mounts, layer)
	if err != nil {
		return none, err
	}
	// The digest also covers bytes after the archive's end.
	if _, err := io.Copy(io.Discard, layer); err != nil {
		return none, err
	}
	whole.Close() // all of it is hashed
	// The snapshotter records the layer next, durably, and it is never unpacked
	// again. Files that were still in memory would be empty after a loss of power.
	if err := syncTree(dir); err != nil {
		return none, err
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Size: layer.n, Digest: sum.Digest()}, nil
}

// syncTree makes the files below dir durable, with all others of the file system.
// One call is faster than one for each file and directory.
func syncTree(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return &os.PathError{Op: "syncfs", Path: dir, Err: err}
	}
	return nil
}

// applyTar unpacks a layer onto a snapshot: into the upper directory of an
// overlay, with whiteouts as overlayfs marks them, or into the one directory of
// a bind mount. It returns that directory. Nothing is mounted for it. Only the
// daemon's user has access to these directories.
func applyTar(ctx context.Context, mounts []mount.Mount, layer io.Reader) (dir string, err error) {
	if len(mounts) != 1 {
		return "", errs.NotImplemented("snapshot with %d mounts", len(mounts))
	}
	m := mounts[0]
	switch m.Type {
	case "bind":
		return m.Source, unpackTar(ctx, m.Source, layer)
	case "overlay":
		var upper string
		var lowers []string
		for _, o := range m.Options {
			if v, ok := strings.CutPrefix(o, "upperdir="); ok {
				upper = v
			} else if v, ok := strings.CutPrefix(o, "lowerdir="); ok {
				lowers = strings.Split(v, ":")
			}
		}
		if upper != "" {
			return upper, unpackTar(ctx, upper, layer, tararchive.WithConvertWhiteout(tararchive.OverlayConvertWhiteout), tararchive.WithParents(lowers))
		}
	}
	return "", errdefs.ErrNotImplemented.WithMessage("snapshot with a mount of type " + m.Type)
}

// unpackTar unpacks a layer into a directory that no one else changes.
func unpackTar(ctx context.Context, dir string, layer io.Reader, opts ...tararchive.ApplyOpt) error {
	_, err := tararchive.Apply(ctx, dir, layer, append(opts, tararchive.WithFilter(func(h *tar.Header) (bool, error) {
		return true, checkEntry(dir, h)
	}))...)
	return err
}

// checkEntry removes from a layer's entry the attributes that an image must not
// set, and refuses entries that can't be unpacked.
func checkEntry(dir string, h *tar.Header) error {
	if strings.ContainsRune(h.Name, 0) || strings.ContainsRune(h.Linkname, 0) {
		return errs.Invalid("the layer has a file name with a NUL byte: %q", h.Name)
	}
	// The libraries that unpack a layer and measure it name each file by its whole
	// path.
	for _, name := range []string{h.Name, h.Linkname} {
		if most := unix.PathMax - 1 - len(dir) - 1; len(name) > most && (name == h.Name || h.Typeflag == tar.TypeLink) {
			return errs.Invalid("the layer has a path of %d bytes, and the longest that can be unpacked here has %d: the kernel's limit is %d, and the folder of the images is part of it: %.60q…",
				len(name), most, unix.PathMax-1, name)
		}
	}
	maps.DeleteFunc(h.PAXRecords, func(key, _ string) bool {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		return ok && !allowedXattr(name)
	})
	// A sparse entry can claim any size in a few bytes, and a compressed one
	// nearly so. Refuse a file that does not fit before writing any of it.
	var st unix.Statfs_t
	if h.Size > 1<<20 && unix.Statfs(dir, &st) == nil && st.Bavail < uint64(h.Size)/uint64(st.Bsize) {
		return fmt.Errorf("%s has %d bytes: %w", h.Name, h.Size, syscall.ENOSPC)
	}
	return nil
}

// allowedXattr reports whether a layer may set an extended attribute. Allowed
// are user attributes, file capabilities and access lists. trusted.* and
// user.overlay.* belong to overlayfs, which by them redirects to other
// directories; the rest of security.* is the host's policy.
func allowedXattr(name string) bool {
	switch {
	case name == "security.capability", strings.HasPrefix(name, "system.posix_acl_"):
		return true
	case strings.HasPrefix(name, "user.overlay."):
		return false
	}
	return strings.HasPrefix(name, "user.")
}

// decompress reads a stream that is compressed with gzip or zstd, or
// uncompressed.
func decompress(r io.Reader) (io.ReadCloser, error) {
	head := bufio.NewReader(r)
	if start, err := head.Peek(10); err == nil && compression.DetectCompression(start) == compression.Zstd {
		return unzstd(head)
	}
	return compression.DecompressStream(head)
}

// decompressAny also reads bzip2 and xz, which Docker accepts from users.
func decompressAny(r io.Reader) (io.ReadCloser, error) {
	head := bufio.NewReader(r)
	if start, err := head.Peek(10); err == nil && compression.DetectCompression(start) == compression.Zstd {
		return unzstd(head)
	}
	return dockercompression.DecompressStream(head)
}

func unzstd(r io.Reader) (io.ReadCloser, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, err
	}
	return z.IOReadCloser(), nil
}

// counted counts the bytes that are read.
type counted struct {
	r      io.Reader
	n      int64
	report func(int64)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.report != nil {
		c.report(c.n)
	}
	return n, err
}
