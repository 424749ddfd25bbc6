// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"fmt"
	"path/filepath"

	"holdfast/internal/beneath"
)

// LayerUsage returns how many bytes on disk a container has written into its
// writable layer below its directory dir. It needs no open Store.
// fs.ErrNotExist: the container has a full copy of its image, of which only a
// Store can distinguish the changed part.
func LayerUsage(dir string) (int64, error) {
	size, err := beneath.Usage(context.Background(), filepath.Join(dir, upperDir), "")
	if err != nil {
		return 0, fmt.Errorf("usage of rootfs: %w", err)
	}
	return size, nil
}
