// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"

	"holdfast/internal/errs"
)

// Storage drivers. Docker's names for them are accepted too.
const (
	Overlay = "overlayfs"
	Native  = "native"
)

// upperdirLabel is the label in which the overlay snapshotter stores the
// directory of a layer (containerd, plugins/snapshots/overlay).
const upperdirLabel = "containerd.io/snapshot/overlay.upperdir"

func errUnknownDriver(name string) error {
	return errs.Invalid("unknown storage driver %q: known are overlay2 (overlayfs) and vfs (native)", name)
}

// CheckDriver checks the name of a storage driver; an empty name chooses one.
// Error: invalid argument.
func CheckDriver(name string) error {
	_, err := driverName(name)
	return err
}

func driverName(name string) (string, error) {
	switch name {
	case "":
		return "", nil
	case "overlay2", Overlay:
		return Overlay, nil
	case "vfs", Native:
		return Native, nil
	}
	return "", errUnknownDriver(name)
}

// openDrivers opens the wanted driver. It also opens the other one if it has
// been used under this root, because containers keep the driver that they were
// created with.
func (s *Store) openDrivers(want string) (map[string]snapshots.Snapshotter, error) {
	supported := overlayutils.Supported(s.root)
	switch {
	case want == Overlay && supported != nil:
		return nil, fmt.Errorf("storage driver overlayfs can't be used under %s: %w", s.root, supported)
	case want == "" && supported != nil:
		s.log.Warn("overlayfs can't be used, falling back to native, which copies every layer", "root", s.root, "error", supported)
		want = Native
	case want == "":
		want = Overlay
	}
	s.layers.driver = want

	drivers := map[string]snapshots.Snapshotter{}
	for _, name := range []string{Overlay, Native} {
		dir := s.path("snapshots", name)
		if _, err := os.Stat(dir); name != want && errors.Is(err, os.ErrNotExist) {
			continue
		}
		var sn snapshots.Snapshotter
		err := s.checkDriver(name, dir)
		if err == nil {
			sn, err = openDriver(name, dir)
		}
		if err != nil {
			if name != want {
				s.log.Error("storage driver of older containers can't be opened", "driver", name, "error", err)
				continue
			}
			return nil, fmt.Errorf("storage driver %s: %w", name, err)
		}
		drivers[name] = sn
		s.closers = append(s.closers, sn.Close)
	}
	return drivers, nil
}

func openDriver(name, dir string) (snapshots.Snapshotter, error) {
	if name == Native {
		// Directories that a dead process left half written. The overlay
		// snapshotter finds its own in Cleanup.
		for _, pattern := range []string{"new-*", "rm-*"} {
			left, err := filepath.Glob(filepath.Join(dir, "snapshots", pattern))
			if err != nil {
				return nil, err
			}
			for _, half := range left {
				if err := os.RemoveAll(half); err != nil {
					return nil, err
				}
			}
		}
		return native.NewSnapshotter(dir)
	}
	return overlay.NewSnapshotter(dir, overlay.AsynchronousRemove, overlay.WithUpperdirLabel)
}

func driverNames(m map[string]snapshots.Snapshotter) []string {
	return slices.Sorted(maps.Keys(m))
}
