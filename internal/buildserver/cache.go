// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/moby/buildkit/solver/bboltcachestorage"
	"go.etcd.io/bbolt"

	"holdfast/internal/durable"
)

const (
	// cacheFile is the index of the build cache: which step has which result.
	cacheFile = "cache.db"
	// metadataFile has the records of the cache, historyFile the builds that have ended.
	metadataFile = "metadata_v2.db"
	historyFile  = "history.db"
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

// checkDatabases reads the databases in the folder state whole if they were open when a
// process was killed, and sets aside those that are damaged. bbolt panics when it comes to a
// damaged page, which ends the process: without the check each build that needs the page
// would end so.
func checkDatabases(state string) error {
	if _, err := os.Stat(filepath.Join(state, openMark)); err != nil {
		return nil // they were closed, or there are none
	}
	for _, name := range []string{cacheFile, metadataFile, historyFile} {
		path := filepath.Join(state, name)
		if _, err := os.Stat(path); err != nil {
			continue
		}
		if err := readWhole(path); err != nil {
			if err := setAside(path, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// readWhole reads all pages of a database that are in use.
func readWhole(path string) (err error) {
	// A page beyond the end of the file is a fault.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	var db *bbolt.DB
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%v", v)
		}
		if db != nil {
			err = errors.Join(err, db.Close())
		}
	}()
	if db, err = bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second}); err != nil {
		return err
	}
	return db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error { return readBucket(b) })
	})
}

func readBucket(b *bbolt.Bucket) error {
	return b.ForEach(func(name, value []byte) error {
		if value != nil {
			return nil
		}
		return readBucket(b.Bucket(name))
	})
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
