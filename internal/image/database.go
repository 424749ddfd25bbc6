// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
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
			b := tx.Bucket([]byte("v1"))
			for _, name := range []string{namespace, "snapshots", driver} {
				var err error
				if b, err = b.CreateBucketIfNotExists([]byte(name)); err != nil {
					return err
				}
			}
			if b.Sequence() < long {
				if err := b.SetSequence(uint64(time.Now().Unix())); err != nil {
					return err
				}
			}
		}
		return nil
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
