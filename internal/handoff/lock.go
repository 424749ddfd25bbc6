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

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// LockFile is the name of the file that is locked in either root.
const LockFile = "holdfastd.lock"

// Modes of the roots, where the daemon makes them. Users need to pass through
// the exec root to the socket, and through the data root with a remapped user;
// nobody but root lists them.
const rootMode = 0o711

// Lock holds the data root and the exec root for this process. While it is
// held no other daemon works on either.
type Lock struct {
	files  []*os.File
	record holder
}

// holder is what the lock file says of who holds it. It is for people: only
// the flock itself decides.
type holder struct {
	Pid      int       `json:"pid"`
	Since    time.Time `json:"since"`
	DataRoot string    `json:"dataRoot"`
	ExecRoot string    `json:"execRoot"`
}

// Acquire makes the two roots where they are missing and locks both. It fails
// with a conflict that names the holder when a live process has one of them. A
// holder that has died, but whose descriptors the kernel is still closing, is
// waited for until ctx ends, at most 5 seconds.
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
			continue // one folder for both
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
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("the %s %s is no folder: name another", what, dir))
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
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
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
		// It is on its way out, or a child that it was just starting still has
		// its descriptors: the kernel lets go in a moment.
		if err := waitLock(ctx, f); err == nil {
			return f, nil
		}
		return nil, errdefs.ErrConflict.WithMessage(fmt.Sprintf("the %s %s is locked, though its holder, process %d, has ended: look for processes that it left with `fuser %s`", what, dir, held.Pid, name))
	}
	f.Close()
	if held.Pid == 0 {
		return nil, errdefs.ErrConflict.WithMessage(fmt.Sprintf("the %s %s is held by another daemon: stop it, or use another --%s", what, dir, strings.ReplaceAll(what, " ", "-")))
	}
	return nil, errdefs.ErrConflict.WithMessage(fmt.Sprintf("the %s %s is held by the daemon with process ID %d since %s, whose data root is %s: stop it, or use another --%s", what, dir, held.Pid, held.Since.Format(time.RFC3339), held.DataRoot, strings.ReplaceAll(what, " ", "-")))
}

// waitLock takes over f: it is locked on return, or closed once the lock has
// come too late. flock can't be interrupted, so it waits on a thread of its
// own.
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

// alive reports whether a process runs. A zombie doesn't: it waits to be
// reaped and holds nothing.
func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	// The command in parentheses may hold anything; the state follows it.
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

// Files are the locked files, to be given to a successor with its own copies
// of the descriptors. The lock is free when the last copy is closed.
func (l *Lock) Files() []*os.File { return l.files }

// Adopt makes a Lock of the files that a predecessor gave, and writes this
// process into them.
func Adopt(files []*os.File, dataRoot, execRoot string) (*Lock, error) {
	for _, f := range files {
		// Same open file: succeeds at once. Anything else means that this is
		// not the lock that it is said to be.
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return nil, errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("the lock %s was not handed over: %v", f.Name(), err))
		}
	}
	l := &Lock{files: files, record: holder{Pid: os.Getpid(), Since: time.Now(), DataRoot: dataRoot, ExecRoot: execRoot}}
	return l, l.write()
}

// Rewrite writes this process into the lock's files again, where a successor
// that failed has put itself.
func (l *Lock) Rewrite() error { return l.write() }

// Release closes the lock's files. The files stay: to remove one would let two
// daemons lock two files of the same name.
func (l *Lock) Release() {
	for _, f := range l.files {
		f.Close()
	}
	l.files = nil
}
