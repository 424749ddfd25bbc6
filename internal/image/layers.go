// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// layers are the unpacked layers of images, in the storage drivers' snapshotters.
type layers struct {
	env
	contents *contents
	leasing  *leasing
	driver   string // of new containers
	drivers  map[string]snapshots.Snapshotter
	blobs    keyLock
	lowers   lowerDirs
	// adoptions are the layers that builds have made.
	adoptions adoptions
}

// cleanDrivers removes directories left by a process that died while unpacking.
// It returns false if a driver failed, which one without layers does; the next
// collection then tries again.
func (ly *layers) cleanDrivers(ctx context.Context) bool {
	done := true
	for name, sn := range ly.drivers {
		c, ok := sn.(snapshots.Cleaner)
		if !ok {
			continue
		}
		err := c.Cleanup(ctx)
		done = done && err == nil
		if err != nil && !errdefs.IsNotFound(err) {
			ly.log.Warn("directories of partly unpacked layers could not be removed", "driver", name, "error", err)
		}
	}
	return done
}

func (ly *layers) snapshotter(storage string) (snapshots.Snapshotter, error) {
	sn := ly.contents.db.Snapshotter(storage)
	if sn == nil {
		return nil, errUnknownDriver(storage)
	}
	return adopted{sn, ly, storage}, nil
}
