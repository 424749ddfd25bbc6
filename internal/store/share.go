// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"holdfast/internal/durable"
	"holdfast/internal/shim/proto"
)

// Clients that may use the API may also use the containers while no daemon runs.
// So the files that such a client reads, and the shims' sockets, belong to the
// group of the API's socket. A new file gets the group of its directory. Below
// the exec root, under networks/ and under events/ the kernel does this (setgid
// directories). In a container's directory the writers do it: the layer of its
// root file system is in there too and must not inherit the group.

// Share lets a group read the tree below the two roots and connect to shims. It
// changes existing files, and new ones get the group as well. Group 0 revokes
// that. All others have no access to the roots.
func Share(dataRoot, execRoot string, a Access) error {
	s := &Store{data: dataRoot, exec: execRoot}
	group := a.Group
	if err := errors.Join(
		s.shareInside(s.NetworksDir(), group), s.shareInside(s.EventsDir(), group),
		share(s.shimsDir(), group, 0o2710), share(s.ContainersDir(), group, 0o750),
		s.closeRoots(a),
	); err != nil {
		return fmt.Errorf("share with group %d: %w", group, err)
	}
	entries, err := os.ReadDir(s.ContainersDir())
	if err != nil {
		return fmt.Errorf("share with group %d: %w", group, err)
	}
	for _, e := range entries {
		if !e.IsDir() || checkID(e.Name()) != nil || durable.GroupOf(s.ContainerDir(e.Name())) == group && durable.GroupOf(s.RunDir(e.Name())) == group {
			continue
		}
		if err := s.shareContainer(e.Name(), group); err != nil {
			return fmt.Errorf("share container %s with group %d: %w", e.Name(), group, err)
		}
	}
	return nil
}

// shareContainer gives a container's files to a group. The directories come last:
// as long as they have another group, the next call repeats everything.
func (s *Store) shareContainer(id string, group int) error {
	dir, run := s.ContainerDir(id), s.RunDir(id)
	files := []string{s.SpecPath(id), filepath.Join(dir, proto.ExitFile)}
	for _, pattern := range []string{id + "-json.log*", "local-logs/*"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		files = append(files, found...)
	}
	files = append(files, filepath.Join(run, proto.StateFile), filepath.Join(run, proto.JournalFile), filepath.Join(s.Bundle(id), "config.json"))
	var errs []error
	for _, f := range files {
		errs = append(errs, share(f, group, 0o640))
	}
	errs = append(errs,
		share(filepath.Join(run, proto.SocketFile), group, 0o660),
		share(s.Bundle(id), group, 0o2710), share(run, group, 0o2710),
		share(filepath.Join(dir, "local-logs"), group, 0o750), share(dir, group, 0o750),
	)
	return errors.Join(errs...)
}

// shareInside gives a directory of ours and the files in it to a group.
func (s *Store) shareInside(dir string, group int) error {
	if durable.GroupOf(dir) == group {
		if st, err := os.Stat(dir); err == nil && st.Mode()&fs.ModeSetgid != 0 {
			return nil
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.Type().IsRegular() && !strings.HasPrefix(e.Name(), ".") {
			errs = append(errs, share(filepath.Join(dir, e.Name()), group, 0o640))
		}
	}
	return errors.Join(append(errs, share(dir, group, 0o2750))...)
}

// share gives one file or directory to a group, with mode bits as in chmod(1). It
// does not follow links. A missing file is not an error.
func share(path string, group int, mode uint32) error {
	if err := os.Lchown(path, -1, group); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	err := syscall.Chmod(path, mode)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &fs.PathError{Op: "chmod", Path: path, Err: err}
	}
	return nil
}

// TakeGroup gives a new file or directory the group of its parent directory.
func TakeGroup(path string) error { return durable.TakeGroup(path) }
