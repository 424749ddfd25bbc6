// SPDX-License-Identifier: Apache-2.0

// Package durable writes files so that a crash of the process or of the machine
// leaves each with its old or its new content.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// tempSuffix is what the names of temporary files end in. Earlier releases appended
// random digits to it.
const tempSuffix = ".tmp"

// WriteFile replaces a file. After a crash of the process or of the machine the file
// has either the old or the new content, and so it has for concurrent readers. The
// file gets the group of its directory. A file has one writer at a time: the temporary
// file always has the same name, so crashes do not leave one after the other.
func WriteFile(path string, data []byte, perm os.FileMode) (err error) {
	dir, name := filepath.Split(path)
	f, err := os.OpenFile(filepath.Join(dir, "."+name+tempSuffix), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = TakeGroup(f.Name()); err != nil {
		return err
	}
	if err = f.Chmod(perm); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// IsTemp reports whether WriteFile makes a temporary file with this name, for a file
// called name.
func IsTemp(temp, name string) bool { return strings.HasPrefix(temp, "."+name+tempSuffix) }

// RemoveTemps removes the temporary files that crashes left in a directory. Nobody may
// write files there at the same time. Files of other names stay.
func RemoveTemps(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if !strings.HasPrefix(name, ".") || !strings.Contains(name, tempSuffix) || !e.Type().IsRegular() {
			continue
		}
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// TakeGroup gives a new file or directory the group of its parent directory.
func TakeGroup(path string) error {
	group := GroupOf(filepath.Dir(path))
	if group <= 0 {
		return nil
	}
	return os.Lchown(path, -1, group)
}

// GroupOf returns the group of a file, or -1 if there is no file.
func GroupOf(path string) int {
	st, err := os.Lstat(path)
	if err != nil {
		return -1
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return int(sys.Gid)
	}
	return -1
}
