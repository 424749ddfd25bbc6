// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/leases"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// leasing makes the leases that keep blobs and layers of unfinished work from the
// garbage collector.
type leasing struct {
	env
	leases   leases.Manager
	requests *requests
}

// withLease runs fn with a lease in its context. The lease keeps everything
// that fn writes until an image refers to it.
func (ls *leasing) withLease(ctx context.Context, fn func(context.Context) error) error {
	ctx = ls.ctx(ctx)
	lease, err := ls.leases.Create(ctx, leases.WithID(workPrefix+rand.Text()))
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	err = fn(leases.WithLease(ctx, lease.ID))
	if err := ls.leases.Delete(context.WithoutCancel(ctx), lease); err != nil {
		ls.log.Warn("a lease of the image store could not be deleted; the next start deletes it", "lease", lease.ID, "error", err)
	}
	if err != nil {
		// Removes what fn wrote before it failed. The lease would keep it.
		ls.requests.collectSoon()
	}
	return err
}

// lend keeps an image from collection for as long as the context's lease lives.
func (ls *leasing) lend(ctx context.Context, target ocispec.Descriptor) error {
	lease, _ := leases.FromContext(ctx)
	return ls.leases.AddResource(ctx, leases.Lease{ID: lease}, leases.Resource{ID: target.Digest.String(), Type: "content"})
}

// workPrefix begins the ID of a lease of this process. Leases with other IDs keep
// partial downloads and what builds have made.
const workPrefix = "work-"

// dropLeases deletes the leases of a process that died. No other process can
// have the store open.
func (ls *leasing) dropLeases(ctx context.Context) error {
	left, err := ls.leases.List(ctx)
	if err != nil {
		return err
	}
	for _, lease := range left {
		if !strings.HasPrefix(lease.ID, workPrefix) {
			continue
		}
		if err := ls.leases.Delete(ctx, lease); err != nil {
			return err
		}
	}
	return nil
}
