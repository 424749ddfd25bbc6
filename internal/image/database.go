// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"holdfast/internal/errs"
)

const (
	// databaseFile has the metadata of images, blobs, layers and leases.
	databaseFile  = "metadata.db"
	damagedSuffix = ".damaged"
)

// openDatabase opens the database. A damaged one is set aside and a new one begun: the
// daemon must be able to manage containers without images. The blobs and layers stay
// where they are, because containers use them, and are not collected (openMetadata).
func (s *Store) openDatabase() error {
	path := s.path(databaseFile)
	db, damaged, err := tryDatabase(path)
	if damaged {
		s.log.Error("the database of images is damaged: it is set aside, and images have to be pulled or loaded again", "path", path, "aside", path+damagedSuffix, "error", err)
		if err := os.Rename(path, path+damagedSuffix); err != nil {
			return fmt.Errorf("image store: %w", err)
		}
		db, _, err = tryDatabase(path)
	}
	if errors.Is(err, bolterrors.ErrTimeout) {
		return errs.Unavailable("image store %s is in use by another process; stop it or choose another data root", s.root)
	}
	if err != nil {
		return fmt.Errorf("image store: open %s: %w", path, err)
	}
	s.bolt = db
	return nil
}

// skipNames makes the names of new snapshots differ from those that a database had
// which was set aside: the storage drivers have these still. A name has the number of
// the snapshot in its bucket, which continues at the time in seconds.
func (s *Store) skipNames() error {
	const long = 1_000_000_000 // more than any database has had
	return s.bolt.Update(func(tx *bbolt.Tx) error {
		for _, driver := range driverNames(s.layers.drivers) {
			b, err := makeBucket(tx, "v1", namespace, "snapshots", driver)
			if err == nil && b.Sequence() < long {
				err = b.SetSequence(uint64(time.Now().Unix()))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func makeBucket(tx *bbolt.Tx, path ...string) (b *bbolt.Bucket, err error) {
	b, err = tx.CreateBucketIfNotExists([]byte(path[0]))
	for _, name := range path[1:] {
		if err != nil {
			return nil, err
		}
		b, err = b.CreateBucketIfNotExists([]byte(name))
	}
	return b, err
}

// checkDriver sets the database of a storage driver aside if it is damaged. The
// directories of its layers stay, because containers use them.
func (s *Store) checkDriver(name, dir string) error {
	path := filepath.Join(dir, databaseFile)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(path + damagedSuffix); err != nil {
			return nil // it has no layers yet
		}
		return s.beginDriver(name, path) // the last start was interrupted below
	}
	db, damaged, err := tryDatabase(path)
	switch {
	case damaged:
		s.log.Error("the database of a storage driver is damaged: it is set aside, and images have to be pulled or loaded again before containers can start from them", "driver", name, "path", path, "aside", path+damagedSuffix, "error", err)
		if err := os.Rename(path, path+damagedSuffix); err != nil {
			return err
		}
		return s.beginDriver(name, path)
	case err != nil:
		return err
	}
	return db.Close()
}

// beginDriver makes the database of a storage driver that has directories of layers
// already: new layers get other numbers, and no image counts as unpacked. Source of the
// names: containerd, core/snapshots/storage.
func (s *Store) beginDriver(name, path string) error {
	if err := s.forgetLayers(name); err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(filepath.Dir(path), "snapshots"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	last := uint64(0)
	for _, e := range entries {
		if n, err := strconv.ParseUint(e.Name(), 10, 63); err == nil {
			last = max(last, n)
		}
	}
	db, _, err := tryDatabase(path)
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		b, err := makeBucket(tx, "v1", "snapshots")
		if err != nil {
			return err
		}
		return b.SetSequence(last)
	})
	return errors.Join(err, db.Close())
}

// aside returns the databases that were set aside and still exist.
func (s *Store) aside() (paths []string) {
	for _, path := range []string{
		s.path(databaseFile), s.path("snapshots", Overlay, databaseFile), s.path("snapshots", Native, databaseFile),
	} {
		if _, err := os.Lstat(path + damagedSuffix); err == nil {
			paths = append(paths, path+damagedSuffix)
		}
	}
	return paths
}

// forgetLayers removes what the database of images has of a driver's layers.
func (s *Store) forgetLayers(driver string) error {
	return s.bolt.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("v1"))
		for _, name := range []string{namespace, "snapshots"} {
			if b != nil {
				b = b.Bucket([]byte(name))
			}
		}
		if b == nil || b.Bucket([]byte(driver)) == nil {
			return nil
		}
		return b.DeleteBucket([]byte(driver))
	})
}

// tryDatabase opens a database, and reads all that it has on the upper levels. damaged
// reports whether an error is about its content.
func tryDatabase(path string) (db *bbolt.DB, damaged bool, err error) {
	// bbolt panics at pages that are not what they should be, and maps the file, so a
	// page beyond its end is a fault.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if v := recover(); v != nil {
			damaged, err = true, fmt.Errorf("%v", v)
		}
		if err != nil && db != nil {
			err = errors.Join(err, db.Close())
		}
	}()
	if st, err := os.Stat(path); err == nil && st.Size() == 0 {
		// bbolt would take it for a new one.
		return nil, true, errors.New("it is empty")
	}
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockWait, FreelistType: bbolt.FreelistMapType, NoStatistics: true})
	var system *fs.PathError
	if err != nil {
		return nil, !errors.Is(err, bolterrors.ErrTimeout) && !errors.As(err, &system), err
	}
	err = db.View(func(tx *bbolt.Tx) error { return tx.ForEach(readBucket(3)) })
	return db, err != nil, err
}

// readBucket returns a function that reads a bucket and those in it, down to a depth.
func readBucket(depth int) func(name []byte, b *bbolt.Bucket) error {
	return func(_ []byte, b *bbolt.Bucket) error {
		return b.ForEach(func(name, value []byte) error {
			if value == nil && depth > 0 {
				return readBucket(depth-1)(name, b.Bucket(name))
			}
			return nil
		})
	}
}
