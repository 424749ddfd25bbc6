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
)

// Storage drivers. Docker's names for the same things are taken too.
const (
	Overlay = "overlayfs"
	Native  = "native"
)

// upperdirLabel is where the overlay snapshotter tells the directory of a
// layer (containerd, plugins/snapshots/overlay).
const upperdirLabel = "containerd.io/snapshot/overlay.upperdir"

func errUnknownDriver(name string) error {
	return errInvalid("unknown storage driver %q: known are overlay2 (overlayfs) and vfs (native)", name)
}

// driverName maps what the user wrote to a driver; "" stays for "choose".
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

// openDrivers opens the wanted driver, and the other one as well when it has
// been used here before: containers keep the driver that they were made with.
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
	s.driver = want

	drivers := map[string]snapshots.Snapshotter{}
	for _, name := range []string{Overlay, Native} {
		dir := s.path("snapshots", name)
		if _, err := os.Stat(dir); name != want && errors.Is(err, os.ErrNotExist) {
			continue
		}
		sn, err := openDriver(name, dir)
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
		// Halves that a dead process left; overlay finds its own by Cleanup.
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
