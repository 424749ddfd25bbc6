package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/continuity/fs"
)

// LayerUsage is how many bytes on disk a container has written into the layer
// that it has in its folder dir. It needs no open Store. fs.ErrNotExist: what
// it has there is a whole copy, whose own part a Store alone can tell.
func LayerUsage(dir string) (int64, error) {
	upper := filepath.Join(dir, upperDir)
	if _, err := os.Lstat(upper); err != nil {
		return 0, fmt.Errorf("usage of rootfs: %w", err)
	}
	u, err := fs.DiskUsage(context.Background(), upper)
	if err != nil {
		return 0, fmt.Errorf("usage of rootfs: %w", err)
	}
	return u.Size, nil
}
