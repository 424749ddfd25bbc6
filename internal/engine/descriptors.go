// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	moby "github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"holdfast/internal/shim/client"
	"holdfast/internal/shim/proto"
)

// terminals is implemented by shims that give the daemon a copy of the container's
// terminal. Shims of earlier releases do not implement it.
type terminals interface {
	// Terminal returns the master of the running container's terminal.
	Terminal(ctx context.Context) (*os.File, error)
}

// Names of descriptors in the keeper.
const (
	storedPidfd    = "pidfd"
	storedTerminal = "terminal"
	storedStdin    = "stdin"
	storedStdout   = "stdout"
	storedStderr   = "stderr"
)

// descriptors are copies of descriptors that a shim has open for a running
// container. They preserve the container's streams and its exit code when the
// shim is killed: the pidfd, through which the kernel returns the exit code of a
// process that is not a child, and the shim's ends of the terminal or of standard
// input. The shim's successor gets them. The daemon does not read or write them.
//
// If there is a Keeper, it has a copy of each for the next daemon.
type descriptors struct {
	id     string // of the container
	log    *slog.Logger
	runDir func(id string) string
	keeper func() Keeper // nil while there is none, or the engine only observes

	mu    sync.Mutex
	pid   int    // of the container's process; 0 if there is none
	start uint64 // its start time, as in proto.State
	files client.Kept
	// outputs are the FIFOs of standard output and error, open for reading. The
	// kernel discards what was written to a FIFO when its last descriptor is
	// closed, so without these the next shim would miss the last lines of a
	// container that ended while it had no shim. They are file descriptor numbers
	// instead of os.File, because the runtime's poller would wake up for every
	// line.
	outputs []int
}

// name is the name of a descriptor in the keeper. It contains the pid and start
// time of the process, so that no name is used twice.
func (d *descriptors) name(what string) string {
	return fmt.Sprintf("%s-%d-%d-%s", d.id, d.pid, d.start, what)
}

// store gives a copy of a descriptor to the keeper. d.mu is held.
func (d *descriptors) store(what string, fd int) {
	if k := d.keeper(); k != nil {
		k.Keep(d.name(what), fd)
	}
}

func (d *descriptors) storeFile(what string, f *os.File) {
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { d.store(what, int(fd)) })
	}
}

// restore takes from the keeper the descriptors that an earlier daemon stored for
// the process of a record.
func (d *descriptors) restore(rec proto.State) {
	k := d.keeper()
	if k == nil || rec.Pid == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pid, d.start = rec.Pid, rec.PidStart
	if d.files.Pidfd = k.Take(d.name(storedPidfd)); d.files.Pidfd == nil {
		d.pid, d.start = 0, 0
		return
	}
	d.files.Terminal = k.Take(d.name(storedTerminal))
	d.files.Stdin = k.Take(d.name(storedStdin))
	for _, what := range []string{storedStdout, storedStderr} {
		f := k.Take(d.name(what))
		if f == nil {
			continue
		}
		if fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3); err == nil {
			d.outputs = append(d.outputs, fd)
		}
		f.Close()
	}
}

// close closes all descriptors, here and in the keeper.
func (d *descriptors) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closeLocked()
}

func (d *descriptors) closeLocked() {
	if k := d.keeper(); k != nil && d.files.Pidfd != nil {
		for _, what := range []string{storedPidfd, storedTerminal, storedStdin, storedStdout, storedStderr} {
			k.Forget(d.name(what))
		}
	}
	if f := d.files.Pidfd; f != nil {
		// After its shim was killed, the process became the daemon's child. It was
		// left unreaped, so that the next shim could read its exit code. For a process
		// that is not our child the call fails, which is fine.
		_ = unix.Waitid(unix.P_PIDFD, int(f.Fd()), nil, unix.WEXITED|unix.WNOHANG, nil)
	}
	for _, f := range []*os.File{d.files.Pidfd, d.files.Terminal, d.files.Stdin} {
		if f != nil {
			f.Close()
		}
	}
	for _, fd := range d.outputs {
		unix.Close(fd)
	}
	d.pid, d.start, d.files, d.outputs = 0, 0, client.Kept{}, nil
}

// of reports whether the descriptors belong to a record's process, alive or not.
func (d *descriptors) of(rec proto.State) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return rec.Pid != 0 && d.pid == rec.Pid && d.start == rec.PidStart && d.files.Pidfd != nil
}

// open opens the descriptors of a record's process, except the terminal, which
// only the shim can provide. Descriptors of another process are closed. stdin
// means that the container's standard input does not end while it runs, and tty
// that it has a terminal instead of pipes. open returns false if the descriptors
// of this process were open already.
func (d *descriptors) open(rec proto.State, runDir string, tty, stdin bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pid == rec.Pid && d.start == rec.PidStart {
		return false
	}
	d.closeLocked()
	d.pid, d.start = rec.Pid, rec.PidStart
	if d.files.Pidfd = openProcess(rec); d.files.Pidfd != nil {
		d.storeFile(storedPidfd, d.files.Pidfd)
	}
	if tty {
		return true
	}
	for _, name := range []string{storedStdout, storedStderr} {
		fd, err := unix.Open(filepath.Join(runDir, name), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			d.outputs = append(d.outputs, fd)
			d.store(name, fd)
		}
	}
	if stdin {
		// One more writer changes nothing for the container: its input does not end
		// before the container does.
		path := filepath.Join(runDir, "stdin")
		if fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
			d.files.Stdin = os.NewFile(uintptr(fd), path)
			d.store(storedStdin, fd)
		}
	}
	return true
}

// addTerminal adds the terminal of a record's process. It takes ownership of f.
func (d *descriptors) addTerminal(rec proto.State, f *os.File) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pid != rec.Pid || d.start != rec.PidStart || d.files.Terminal != nil {
		f.Close()
		return
	}
	d.files.Terminal = f
	d.storeFile(storedTerminal, f)
}

// copy duplicates the descriptors of a record's process. It returns none if they
// belong to another process. After an error, such as that there are no free
// descriptors, the caller should try again: a shim without them would lose a terminal.
func (d *descriptors) copy(rec proto.State) (k client.Kept, closeAll func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	closeAll = func() {
		for _, f := range []*os.File{k.Pidfd, k.Terminal, k.Stdin} {
			if f != nil {
				f.Close()
			}
		}
	}
	if rec.Pid == 0 || d.pid != rec.Pid || d.start != rec.PidStart {
		return k, closeAll, nil
	}
	dup := func(f *os.File) *os.File {
		if f == nil || err != nil {
			return nil
		}
		raw, rerr := f.SyscallConn()
		if rerr != nil {
			err = rerr
			return nil
		}
		fd := -1
		if cerr := raw.Control(func(n uintptr) { fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 3) }); cerr != nil {
			err = cerr
		}
		if err != nil {
			err = fmt.Errorf("copy the descriptors of container %s: %w", d.id, err)
			return nil
		}
		return os.NewFile(uintptr(fd), f.Name())
	}
	k = client.Kept{Pidfd: dup(d.files.Pidfd), Terminal: dup(d.files.Terminal), Stdin: dup(d.files.Stdin)}
	return k, closeAll, err
}

// openProcess opens a pidfd of a record's process. It returns nil if the process
// is gone.
func openProcess(rec proto.State) *os.File {
	fd, err := unix.PidfdOpen(rec.Pid, 0)
	if err != nil {
		return nil
	}
	if !present(rec) {
		unix.Close(fd)
		return nil
	}
	return os.NewFile(uintptr(fd), "pidfd")
}

// update makes the descriptors match the last record. It is called at every change,
// and mostly has nothing to do. shim is nil if no shim is connected, or if the
// engine only observes. c is the container's configuration.
func (d *descriptors) update(rec proto.State, shim Shim, c *moby.Config) {
	switch {
	case rec.Pid == 0:
		d.close()
		return
	case shim == nil:
		return
	}
	if !d.open(rec, d.runDir(d.id), c.Tty, c.OpenStdin && !c.StdinOnce) || !c.Tty {
		return
	}
	if t, ok := shim.(terminals); ok {
		go d.askTerminal(t, rec)
	}
}

func (d *descriptors) askTerminal(t terminals, rec proto.State) {
	ctx, cancel := context.WithTimeout(context.Background(), helloTimeout)
	defer cancel()
	f, err := t.Terminal(ctx)
	if err != nil {
		if !errdefs.IsNotImplemented(err) && !errdefs.IsConflict(err) && !errdefs.IsUnavailable(err) {
			d.log.Warn("the daemon could not get a copy of the container's terminal: if its shim is killed, the terminal is lost", "error", err)
		}
		return
	}
	d.addTerminal(rec, f)
}

// canSucceed reports whether a new shim can take over from one that was killed: the
// container's process lives, or the daemon has its pidfd and can read the exit
// code, or the restart policy's delay runs.
func (d *descriptors) canSucceed(rec proto.State) bool {
	switch rec.Status {
	case proto.StatusRunning, proto.StatusPaused:
		return alive(rec) || d.of(rec)
	case proto.StatusRestarting:
		return sameBoot(rec)
	}
	return false
}
