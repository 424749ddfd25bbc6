// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// The root user of a container may create any file, for example a setuid one, and
// containers share the host's user IDs. So no user of the host may reach files
// that containers created. The directories on the way are closed to all but root.
// Where the group of the API's socket needs to pass, they are open to it, because
// its members are as powerful as root.

// RootMode is the mode of the data root and of the exec root. The API's group may
// pass through, to the socket and to the files of Share.
const RootMode fs.FileMode = 0o710

// folder is a directory that the daemon creates below its roots, with mode bits
// as in chmod(1). Share adds the permissions of the API's group.
type folder struct {
	path string
	mode uint32
}

func (s *Store) folders() []folder {
	return []folder{
		{s.ContainersDir(), 0o750}, {s.ImagesDir(), 0o700}, {s.NetworksDir(), 0o2750},
		{s.VolumesDir(), 0o700}, {s.EventsDir(), 0o2750}, {s.shimsDir(), 0o2710}, {s.NamesDir(), 0o700},
	}
}

// makeFolders creates the directories below the roots, and restricts those that
// an earlier release created with wider permissions. Share restricts the roots
// themselves, because it knows the group that passes through them.
func (s *Store) makeFolders() error {
	for _, root := range []string{s.data, s.exec} {
		if err := os.MkdirAll(root, RootMode); err != nil {
			return err
		}
	}
	for _, f := range s.folders() {
		if err := os.MkdirAll(f.path, fs.FileMode(f.mode&0o777)); err != nil {
			return err
		}
		if err := chmod(f.path, f.mode); err != nil {
			return err
		}
	}
	return nil
}

// Access says which users other than root may pass through the exec root.
type Access struct {
	// Group may use the API's socket; 0 is root's own group.
	Group int
	// Everyone: the API's socket in the exec root is open to users outside Group,
	// so they must be able to reach it.
	Everyone bool
}

// closeRoots restricts the two roots. A directory that the host also uses for
// other purposes is left alone, because the engine's directories in it are
// restricted themselves.
func (s *Store) closeRoots(a Access) error {
	exec := uint32(RootMode)
	if a.Everyone {
		exec |= 0o001
	}
	var errs []error
	for _, root := range []folder{{s.data, uint32(RootMode)}, {s.exec, exec}} {
		st, err := os.Stat(root.path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if publicFolder(root.path, st) {
			continue
		}
		if a.Everyone && s.data == s.exec {
			root.mode = exec
		}
		errs = append(errs, share(root.path, a.Group, root.mode))
	}
	return errors.Join(errs...)
}

// publicFolder reports whether a directory belongs to the host and not only to
// the engine, as with --exec-root=/run.
func publicFolder(path string, st fs.FileInfo) bool {
	if st.Mode()&fs.ModeSticky != 0 {
		return true
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || int(sys.Uid) != os.Geteuid() {
		return true
	}
	real, err := filepath.EvalSymlinks(path)
	return err != nil || slices.Contains([]string{
		"/", "/dev", "/etc", "/home", "/media", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/usr", "/usr/local",
		"/var", "/var/cache", "/var/lib", "/var/local", "/var/opt", "/var/tmp",
	}, real)
}

// chmod sets mode bits as in chmod(1), if they differ.
func chmod(path string, mode uint32) error {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	if st.Mode&syscall.S_IFMT == syscall.S_IFLNK {
		// The path is a symbolic link of root's: an administrator moved the
		// directory.
		if err := syscall.Stat(path, &st); err != nil {
			return &fs.PathError{Op: "stat", Path: path, Err: err}
		}
	}
	if st.Mode&0o7777 == mode {
		return nil
	}
	if err := syscall.Chmod(path, mode); err != nil {
		return fmt.Errorf("close %s to other users: %w", path, err)
	}
	return nil
}
