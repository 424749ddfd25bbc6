package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// legacyLock is the file that every iptables-legacy locks. x_tables tells
// nobody of changes, but whoever makes one closes this file after it.
const legacyLock = "/run/xtables.lock"

// WatchLegacy calls changed after somebody, ourselves too, may have changed
// the legacy tables. changed must not wait. After stop it is no longer called.
func WatchLegacy(changed func()) (stop func() error, err error) {
	fail := func(err error) (func() error, error) {
		return nil, fmt.Errorf("watch %s: %w", legacyLock, err)
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fail(err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	// The file may come, and may be replaced by another: its folder tells.
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
			if lockTold(buf[:n]) {
				_ = watchFile() // without it the next look finds what changed
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

// lockTold reads struct inotify_event by struct inotify_event and reports
// whether one is about the lock: the file's own have no name.
func lockTold(b []byte) bool {
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
