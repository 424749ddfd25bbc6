// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/errs"
)

// LockFile is the name of the lock file in both roots.
const LockFile = "holdfastd.lock"

// rootMode is the mode of the roots when the daemon creates them. At first only
// root may enter; package store later lets the group of the API's socket pass.
const rootMode = 0o710

// lockMode keeps other users from opening the lock file. flock(2) needs no write
// permission, so a process that can read the file could hold the lock.
const lockMode = 0o600

// Lock locks the data root and the exec root for this process. While it is held
// no other daemon uses either.
type Lock struct {
	files  []*os.File
	record holder
}

// holder is the record of the lock's holder in the lock file. It is
// informational: only the flock itself decides.
type holder struct {
	Pid      int       `json:"pid"`
	Since    time.Time `json:"since"`
	DataRoot string    `json:"dataRoot"`
	ExecRoot string    `json:"execRoot"`
}

// Acquire creates the two roots if they are missing and locks both. If a live
// process holds one of them it fails with ErrConflict, and the error names the
// holder. If the holder has died, but the kernel is still closing its
// descriptors, it waits until ctx ends, at most 5 seconds.
func Acquire(ctx context.Context, dataRoot, execRoot string) (*Lock, error) {
	l := &Lock{record: holder{Pid: os.Getpid(), Since: time.Now(), DataRoot: dataRoot, ExecRoot: execRoot}}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for _, root := range []struct{ what, dir string }{{"data root", dataRoot}, {"exec root", execRoot}} {
		if err := makeRoot(root.what, root.dir); err != nil {
			l.Release()
			return nil, err
		}
		if len(l.files) == 1 && sameFile(l.files[0], filepath.Join(root.dir, LockFile)) {
			continue // both roots are one directory
		}
		f, err := lockRoot(ctx, root.what, root.dir)
		if err != nil {
			l.Release()
			return nil, err
		}
		l.files = append(l.files, f)
	}
	if err := l.write(); err != nil {
		l.Release()
		return nil, err
	}
	return l, nil
}

// Held reports whether a daemon holds the data root. It does not try the lock,
// because to hold it even for a moment could make that daemon's own start fail.
func Held(dataRoot string) bool {
	f, err := os.OpenFile(filepath.Join(dataRoot, LockFile), unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return false
	}
	locks, err := os.ReadFile("/proc/locks")
	return err == nil && lockedIn(string(locks), fileSystemOf(f), st.Ino)
}

// lockedIn reports whether a list of locks (proc_locks(5)) has one of flock(2) that
// excludes others, on an inode of a file system. device is MAJOR:MINOR in
// hexadecimal digits; without it the inode decides alone.
func lockedIn(locks, device string, inode uint64) bool {
	number := strconv.FormatUint(inode, 10)
	for line := range strings.Lines(locks) {
		// Such as "1: FLOCK  ADVISORY  WRITE 1234 fe:01:5678 0 EOF".
		f := strings.Fields(line)
		if len(f) <= 5 || f[1] != "FLOCK" || f[3] != "WRITE" {
			continue
		}
		at := strings.LastIndexByte(f[5], ':')
		if at >= 0 && f[5][at+1:] == number && (device == "" || f[5][:at] == device) {
			return true
		}
	}
	return false
}

// fileSystemOf returns the device of a file's file system as /proc/locks has it, or
// "" if it is unknown. It is that of the mount, because stat(2) may return another:
// Btrfs has one for each subvolume.
func fileSystemOf(f *os.File) string {
	info, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		return ""
	}
	_, mount, _ := strings.Cut(string(info), "mnt_id:")
	mount, _, _ = strings.Cut(strings.TrimSpace(mount), "\n")
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || mount == "" {
		return ""
	}
	for line := range strings.Lines(string(mounts)) {
		// Such as "36 35 98:0 /mnt1 /mnt2 rw,noatime - ext3 /dev/root rw".
		f := strings.Fields(line)
		var major, minor uint32
		if len(f) < 3 || f[0] != mount {
			continue
		}
		if _, err := fmt.Sscanf(f[2], "%d:%d", &major, &minor); err != nil {
			return ""
		}
		return fmt.Sprintf("%02x:%02x", major, minor)
	}
	return ""
}

func makeRoot(what, dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("make the %s %s: %w", what, dir, err)
	}
	if err := os.Mkdir(dir, rootMode); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make the %s %s: %w", what, dir, err)
	}
	if st, err := os.Stat(dir); err != nil {
		return fmt.Errorf("the %s %s: %w", what, dir, err)
	} else if !st.IsDir() {
		return errs.Invalid("the %s %s is not a directory: name another", what, dir)
	}
	return nil
}

func sameFile(f *os.File, name string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(name)
	return err == nil && os.SameFile(a, b)
}

func lockRoot(ctx context.Context, what, dir string) (*os.File, error) {
	name := filepath.Join(dir, LockFile)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, lockMode)
	if err == nil {
		err = f.Chmod(lockMode) // earlier releases made it readable
	}
	if err != nil {
		return nil, fmt.Errorf("the %s %s can't be written: %w", what, dir, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		f.Close()
		return nil, fmt.Errorf("lock the %s %s: %w", what, dir, err)
	}
	held := readHolder(f)
	if held.Pid > 0 && !alive(held.Pid) {
		// The holder is exiting, or a child that it was just starting still has its
		// descriptors. The kernel releases the lock in a moment.
		if err := waitLock(ctx, f); err == nil {
			return f, nil
		}
		return nil, errs.Conflict("the %s %s is locked, though its holder, process %d, has ended: look for processes that it left with `fuser %s`", what, dir, held.Pid, name)
	}
	f.Close()
	if held.Pid == 0 {
		return nil, errs.Conflict("the %s %s is held by another daemon: stop it, or use another --%s", what, dir, strings.ReplaceAll(what, " ", "-"))
	}
	return nil, errs.Conflict("the %s %s is held by the daemon with process ID %d since %s, whose data root is %s: stop it, or use another --%s", what, dir, held.Pid, held.Since.Format(time.RFC3339), held.DataRoot, strings.ReplaceAll(what, " ", "-"))
}

// waitLock takes over f: on success f is locked, and otherwise f is closed when
// the lock finally arrives. flock can't be interrupted, so it runs in a goroutine
// of its own.
func waitLock(ctx context.Context, f *os.File) error {
	done := make(chan error, 1)
	go func() {
		for {
			err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
			if err != unix.EINTR {
				done <- err
				return
			}
		}
	}()
	select {
	case err := <-done:
		if err != nil {
			f.Close()
		}
		return err
	case <-ctx.Done():
		go func() {
			<-done
			f.Close()
		}()
		return ctx.Err()
	}
}

func readHolder(f *os.File) holder {
	var h holder
	b := make([]byte, 4096)
	n, _ := f.ReadAt(b, 0)
	if json.Unmarshal(b[:n], &h) != nil {
		return holder{}
	}
	return h
}

// alive reports whether a process runs. A zombie does not: it waits to be reaped
// and holds nothing.
func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	// The command in parentheses may contain anything. The state follows it.
	_, rest, ok := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
	return ok && rest != "" && rest[0] != 'Z' && rest[0] != 'X'
}

func (l *Lock) write() error {
	b, err := json.Marshal(l.record)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	for _, f := range l.files {
		if err := f.Truncate(0); err != nil {
			return fmt.Errorf("write %s: %w", f.Name(), err)
		}
		if _, err := f.WriteAt(b, 0); err != nil {
			return fmt.Errorf("write %s: %w", f.Name(), err)
		}
	}
	return nil
}

// Files returns the locked files. A successor gets copies of their descriptors.
// The lock is released when the last copy is closed.
func (l *Lock) Files() []*os.File { return l.files }

// Adopt makes a Lock of the files that a predecessor handed over, and records
// this process as the holder.
func Adopt(files []*os.File, dataRoot, execRoot string) (*Lock, error) {
	for _, f := range files {
		// The descriptor shares the predecessor's open file, so this succeeds at
		// once. If it fails the descriptor is not the lock.
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return nil, errs.Unmet("the lock %s was not handed over: %v", f.Name(), err)
		}
	}
	l := &Lock{files: files, record: holder{Pid: os.Getpid(), Since: time.Now(), DataRoot: dataRoot, ExecRoot: execRoot}}
	return l, l.write()
}

// Rewrite records this process as the holder again, after a successor that failed
// had recorded itself.
func (l *Lock) Rewrite() error { return l.write() }

// Release closes the lock's files. It does not remove them: if it did, two
// daemons could lock two files of the same name.
func (l *Lock) Release() {
	for _, f := range l.files {
		f.Close()
	}
	l.files = nil
}
