// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// partialPrefix begins the ID of a lease that keeps a partial download.
	partialPrefix = "partial-"
	// partialKept is how long a partial download waits for a pull that
	// continues it.
	partialKept = 24 * time.Hour
	// worthKeeping is the size of a blob, in bytes, from which a partial
	// download is kept. A smaller blob is downloaded again sooner than a lease
	// is written.
	worthKeeping = 1 << 20
)

// keepPartial keeps the data written under a content reference if the pull ends
// before the blob is complete: by an error, because the client left, or because
// the daemon died. The next pull of the blob continues from there.
func (ls *leasing) keepPartial(ctx context.Context, ref string, desc ocispec.Descriptor) error {
	if !images.IsLayerType(desc.MediaType) || desc.Size < worthKeeping {
		return nil
	}
	if err := ls.dropPartial(ctx, desc); err != nil { // renews the expiry
		return err
	}
	lease, err := ls.leases.Create(ctx, leases.WithID(partialPrefix+desc.Digest.String()), leases.WithExpiration(partialKept))
	if errdefs.IsAlreadyExists(err) {
		return nil // another pull of this blob has created it
	}
	if err != nil {
		return err
	}
	return ls.leases.AddResource(ctx, lease, leases.Resource{ID: ref, Type: "ingests"})
}

// dropPartial deletes the lease of a partial download, or of one that is
// complete.
func (ls *leasing) dropPartial(ctx context.Context, desc ocispec.Descriptor) error {
	if !images.IsLayerType(desc.MediaType) || desc.Size < worthKeeping {
		return nil
	}
	err := ls.leases.Delete(ctx, leases.Lease{ID: partialPrefix + desc.Digest.String()})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// dropUnnamedIngests removes what is left of a blob of which a process had written
// nothing yet when it was killed: a directory without the blob's name. The content
// store cannot resume or collect it. No other process may have the store open.
func dropUnnamedIngests(contentDir string) error {
	dir := filepath.Join(contentDir, "ingest")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		name, err := os.ReadFile(filepath.Join(path, "ref"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if len(name) > 0 {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}
