// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moby/buildkit/solver/bboltcachestorage"

	"holdfast/internal/durable"
)

const (
	// cacheFile is the index of the build cache: which step has which result.
	cacheFile = "cache.db"
	// openMark exists while the index is open, and has the ID of the boot.
	openMark = "cache.db.open"
)

// openCache opens the index of the build cache in the folder state. closedCache
// follows when it was closed.
//
// BuildKit writes the index without syncs, so after a loss of power it may have pages
// of several times, and bbolt notices that late, by a panic in a build, or never. A
// mark tells that the index was open when another boot of the machine ended. It is then
// set aside, and builds start with an empty cache. What the process wrote before it was
// killed is in the kernel's memory and right, so in the same boot the index stays.
func openCache(state, boot string) (*bboltcachestorage.Store, error) {
	path, mark := filepath.Join(state, cacheFile), filepath.Join(state, openMark)
	before, err := os.ReadFile(mark)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil && string(before) != boot {
		if _, err := os.Stat(path); err == nil {
			if err := setAside(path, errors.New("the machine stopped while it was open")); err != nil {
				return nil, err
			}
		}
	}
	if err := durable.WriteFile(mark, []byte(boot), 0o600); err != nil {
		return nil, err
	}
	return openDatabase(path, bboltcachestorage.NewStore)
}

// closedCache makes the closed index durable, and removes the mark.
func closedCache(state string) error {
	f, err := os.Open(filepath.Join(state, cacheFile))
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Remove(filepath.Join(state, openMark))
}

// setAside renames a damaged database, and says so.
func setAside(path string, why error) error {
	aside := path + ".damaged"
	logf("the database %s is damaged (%v): it was set aside as %s, and builds start with an empty cache", path, why, aside)
	return os.Rename(path, aside)
}

// openDatabase opens a database of BuildKit's. A damaged one is set aside, because
// it has only what a build can make again.
func openDatabase[T any](path string, open func(string) (T, error)) (db T, err error) {
	try := func() (db T, err error) {
		defer func() {
			if v := recover(); v != nil {
				err = fmt.Errorf("%v", v) // bbolt panics at some damage
			}
		}()
		return open(path)
	}
	if db, err = try(); err == nil {
		return db, nil
	}
	if _, statErr := os.Stat(path); statErr != nil {
		return db, err
	}
	if renameErr := setAside(path, err); renameErr != nil {
		return db, errors.Join(err, renameErr)
	}
	return try()
}
