// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"os"
	"path/filepath"
)

// WriteFileAtomic replaces a file. After a crash of the process or of the machine
// the file has either the old or the new content, and so it has for concurrent
// readers. The file gets the group of its directory.
func WriteFileAtomic(path string, data []byte, perm os.FileMode) error {
	dir, name := filepath.Split(path)
	f, err := os.CreateTemp(dir, "."+name+".tmp-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return replace(f, path, data, perm)
}

// writeFileAlone is WriteFileAtomic for a file with one writer. The temporary file
// always has the same name, so crashes do not leave one after the other.
func writeFileAlone(path string, data []byte, perm os.FileMode) error {
	dir, name := filepath.Split(path)
	f, err := os.OpenFile(filepath.Join(dir, "."+name+tempSuffix), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return replace(f, path, data, perm)
}

// tempSuffix is what the names of temporary files end in, or contain.
const tempSuffix = ".tmp"

// replace writes data into the temporary file f and renames it to path.
func replace(f *os.File, path string, data []byte, perm os.FileMode) (err error) {
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

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
