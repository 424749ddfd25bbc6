package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"holdfast/internal/shim/proto"
)

// Who may use the API may use the containers without it: what such a client
// reads, and the shims' sockets, belong to the group of the API's socket. A
// file takes the group of the folder that it is in; below the exec root, under
// networks/ and under events/ the kernel sees to that (setgid folders), in a
// container's folder the writers do, for a layer of a container's root file
// system is in there too, which must not inherit anything.

// Share gives the tree below two roots to a group: reading, and connecting to
// shims. What is there changes hands, and what comes will be the group's as
// well. Group 0 takes it back.
func Share(dataRoot, execRoot string, group int) error {
	s := &Store{data: dataRoot, exec: execRoot}
	if err := errors.Join(
		s.shareInside(s.NetworksDir(), group), s.shareInside(s.EventsDir(), group),
		share(s.shimsDir(), group, 0o2711), share(s.ContainersDir(), group, 0o750),
	); err != nil {
		return fmt.Errorf("share with group %d: %w", group, err)
	}
	entries, err := os.ReadDir(s.ContainersDir())
	if err != nil {
		return fmt.Errorf("share with group %d: %w", group, err)
	}
	for _, e := range entries {
		if !e.IsDir() || checkID(e.Name()) != nil || groupOf(s.ContainerDir(e.Name())) == group && groupOf(s.RunDir(e.Name())) == group {
			continue
		}
		if err := s.shareContainer(e.Name(), group); err != nil {
			return fmt.Errorf("share container %s with group %d: %w", e.Name(), group, err)
		}
	}
	return nil
}

// shareContainer gives a container's files to a group, the folders last: as
// long as they are another's it is done again.
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
		share(s.Bundle(id), group, 0o2711), share(run, group, 0o2711),
		share(filepath.Join(dir, "local-logs"), group, 0o750), share(dir, group, 0o750),
	)
	return errors.Join(errs...)
}

// shareInside gives a folder of ours and the files in it to a group.
func (s *Store) shareInside(dir string, group int) error {
	if groupOf(dir) == group {
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

// share gives one thing to a group, with mode bits as in chmod(1). Links are
// not followed, and what isn't there is fine.
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

// groupOf is the group of a file; -1 where there is none.
func groupOf(path string) int {
	st, err := os.Lstat(path)
	if err != nil {
		return -1
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return int(sys.Gid)
	}
	return -1
}

// TakeGroup gives a new file or folder the group of the folder that it is in.
func TakeGroup(path string) error {
	group := groupOf(filepath.Dir(path))
	if group <= 0 {
		return nil
	}
	return os.Lchown(path, -1, group)
}
