// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// legacyLock is the file that every iptables-legacy locks. x_tables sends no
// notifications, but a program that changes it closes this file afterwards.
const legacyLock = "/run/xtables.lock"

// WatchLegacy calls changed after a program, this one included, may have changed
// the legacy tables. changed must not block. It is not called after stop has
// returned.
func WatchLegacy(changed func()) (stop func() error, err error) {
	fail := func(err error) (func() error, error) {
		return nil, fmt.Errorf("watch %s: %w", legacyLock, err)
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fail(err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	// The file may be created later, or be replaced, so watch its directory.
	_, err = unix.InotifyAddWatch(fd, filepath.Dir(legacyLock), unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR)
	if err != nil {
		return fail(errors.Join(err, f.Close()))
	}
	watchFile := func() error {
		_, err := unix.InotifyAddWatch(fd, legacyLock, unix.IN_CLOSE)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	}
	if err := watchFile(); err != nil {
		return fail(errors.Join(err, f.Close()))
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := f.Read(buf)
			if err != nil {
				return // closed
			}
			if lockChanged(buf[:n]) {
				_ = watchFile() // if it fails, the next comparison still finds the change
				changed()
			}
		}
	}()
	return func() error {
		err := f.Close()
		<-done
		return err
	}, nil
}

// lockChanged parses each struct inotify_event and reports whether one is about
// the lock. Events of the watched file itself have no name.
func lockChanged(b []byte) bool {
	for len(b) >= unix.SizeofInotifyEvent {
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
		if end > len(b) {
			break
		}
		switch unix.ByteSliceToString(b[unix.SizeofInotifyEvent:end]) {
		case "", filepath.Base(legacyLock):
			return true
		}
		b = b[end:]
	}
	return false
}
