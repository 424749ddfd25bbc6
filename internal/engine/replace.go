package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"holdfast/internal/container"
	"holdfast/internal/failpoint"
	"holdfast/internal/network"
	"holdfast/internal/shim/client"
	"holdfast/internal/shim/proto"
)

// A shim that was killed is replaced: a new one adopts the container, which
// runs on. Until it has, whatever is asked of the container waits. Where no
// shim can be had, unshimmed.go does what can be done without one.

// What replacing needs of the parts. A part that lacks it leaves containers
// without a shim.
type (
	bootstraps interface {
		// Bootstrap is what the last shim of a run directory was told.
		Bootstrap(runDir string) (proto.Bootstrap, error)
	}
	reserver interface {
		// Reserve binds a sandbox's host ports again.
		Reserve(ctx context.Context, s network.Sandbox) []network.Reserved
	}
	terminals interface {
		// Terminal is the master of the running container's terminal.
		Terminal(ctx context.Context) (*os.File, error)
	}
)

// held is what the daemon holds of a running container besides its shim, so
// that no single death loses it: the pidfd, by which the kernel tells the exit
// code of a process that is not ours, and our ends of the terminal or the
// input. None of it is read or written here.
type held struct {
	mu    sync.Mutex
	pid   int
	start uint64
	kept  client.Kept
	// outputs are the FIFOs of stdout and stderr, open for reading: what a
	// container wrote last is still there for the next shim when it ended while
	// there was none. They are numbers and no files, so that the poller does not
	// wake up for every line.
	outputs []int
}

// Names of what is held, for whoever keeps it for the next daemon.
const (
	keptPidfd    = "pidfd"
	keptTerminal = "terminal"
	keptStdin    = "stdin"
	keptStdout   = "stdout"
	keptStderr   = "stderr"
)

// keptName is the name of what is held of a process, which no other ever has.
func (a *actor) keptName(what string) string {
	return fmt.Sprintf("%s-%d-%d-%s", a.id, a.held.pid, a.held.start, what)
}

// keep has a descriptor kept for the next daemon, with the lock of what is held.
func (a *actor) keep(what string, fd int) {
	if a.e.keeper != nil && !a.e.observes.Load() {
		a.e.keeper.Keep(a.keptName(what), fd)
	}
}

func (a *actor) keepFile(what string, f *os.File) {
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { a.keep(what, int(fd)) })
	}
}

// takeKept takes what an earlier daemon had kept of the process that the last
// record names, before the actor's loop runs.
func (a *actor) takeKept() {
	k, h := a.e.keeper, &a.held
	if k == nil || a.rec.Pid == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pid, h.start = a.rec.Pid, a.rec.PidStart
	if h.kept.Pidfd = k.Take(a.keptName(keptPidfd)); h.kept.Pidfd == nil {
		h.pid, h.start = 0, 0
		return
	}
	h.kept.Terminal = k.Take(a.keptName(keptTerminal))
	h.kept.Stdin = k.Take(a.keptName(keptStdin))
	for _, what := range []string{keptStdout, keptStderr} {
		f := k.Take(a.keptName(what))
		if f == nil {
			continue
		}
		if fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3); err == nil {
			h.outputs = append(h.outputs, fd)
		}
		f.Close()
	}
}

// drop closes what is held, with the lock.
func (a *actor) drop() {
	h := &a.held
	if k := a.e.keeper; k != nil && h.kept.Pidfd != nil && !a.e.observes.Load() {
		for _, what := range []string{keptPidfd, keptTerminal, keptStdin, keptStdout, keptStderr} {
			k.Forget(a.keptName(what))
		}
	}
	if f := h.kept.Pidfd; f != nil {
		// After its shim was killed the process was the daemon's child, and stayed
		// unreaped for the next shim to read its exit code. Of any other this asks
		// in vain.
		_ = unix.Waitid(unix.P_PIDFD, int(f.Fd()), nil, unix.WEXITED|unix.WNOHANG, nil)
	}
	for _, f := range []*os.File{h.kept.Pidfd, h.kept.Terminal, h.kept.Stdin} {
		if f != nil {
			f.Close()
		}
	}
	for _, fd := range h.outputs {
		unix.Close(fd)
	}
	h.pid, h.start, h.kept, h.outputs = 0, 0, client.Kept{}, nil
}

// has reports whether the process of a record is held, alive or not.
func (h *held) has(rec proto.State) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return rec.Pid != 0 && h.pid == rec.Pid && h.start == rec.PidStart && h.kept.Pidfd != nil
}

// hold brings what is held up to the record, in the loop. It is called at every
// change, and mostly has nothing to do.
func (a *actor) hold() {
	h := &a.held
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pid == a.rec.Pid && h.start == a.rec.PidStart {
		return
	}
	if a.rec.Pid == 0 || a.shim == nil || a.e.observes.Load() {
		if a.rec.Pid == 0 {
			a.drop()
		}
		return
	}
	a.drop()
	h.pid, h.start = a.rec.Pid, a.rec.PidStart
	if h.kept.Pidfd = openProcess(a.rec); h.kept.Pidfd != nil {
		a.keepFile(keptPidfd, h.kept.Pidfd)
	}
	if !a.req.Config.Tty {
		for _, name := range []string{keptStdout, keptStderr} {
			fd, err := unix.Open(filepath.Join(a.e.store.RunDir(a.id), name), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err == nil {
				h.outputs = append(h.outputs, fd)
				a.keep(name, fd)
			}
		}
	}
	switch c := a.req.Config; {
	case c.Tty:
		if t, ok := a.shim.(terminals); ok {
			go a.holdTerminal(t, h.pid, h.start)
		}
	case c.OpenStdin && !c.StdinOnce:
		// A shim never ends this input as long as the container runs, so that
		// one more writer makes no difference but when the shim dies.
		path := filepath.Join(a.e.store.RunDir(a.id), "stdin")
		if fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
			h.kept.Stdin = os.NewFile(uintptr(fd), path)
			a.keep(keptStdin, fd)
		}
	}
}

// openProcess opens a pidfd of a record's process; nil when it is gone.
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

func (a *actor) holdTerminal(t terminals, pid int, start uint64) {
	ctx, cancel := context.WithTimeout(context.Background(), helloTimeout)
	defer cancel()
	f, err := t.Terminal(ctx)
	if err != nil {
		if !errdefs.IsNotImplemented(err) && !errdefs.IsConflict(err) && !errdefs.IsUnavailable(err) {
			a.log.Warn("the container's terminal is held by its shim alone", "error", err)
		}
		return
	}
	a.held.mu.Lock()
	defer a.held.mu.Unlock()
	if a.held.pid != pid || a.held.start != start || a.held.kept.Terminal != nil {
		f.Close()
		return
	}
	a.held.kept.Terminal = f
	a.keepFile(keptTerminal, f)
}

// adoptable reports whether a shim can take over from one that was killed: the
// container's process lives, or it is held by its pidfd, so that its end is known,
// or the next run is waited for.
func (a *actor) adoptable(rec proto.State) bool {
	switch rec.Status {
	case proto.StatusRunning, proto.StatusPaused:
		return alive(rec) || a.held.has(rec)
	case proto.StatusRestarting:
		return sameBoot(rec)
	}
	return false
}

const (
	// replaceFirst is the wait after a first attempt that failed; it doubles.
	replaceFirst = 5 * time.Millisecond
	replaceMost  = 30 * time.Second
	// replacePatience is how long what is asked of a container waits for its
	// new shim.
	replacePatience = 3 * time.Second
	replaceLimit    = 10 * time.Second // of one attempt
)

// replace gives a container without a shim a new one, in the loop or before it
// runs. The state is the one that the last shim left.
func (a *actor) replace(rec proto.State) {
	if a.e.observes.Load() {
		go a.watchProcess(rec)
		return
	}
	a.replacing = true
	go func() {
		began := time.Now()
		watched := false
		for delay := replaceFirst; ; delay = min(2*delay, replaceMost) {
			shim, err := a.e.adopter(a, rec)
			if err != nil {
				// Another may have come first: one that a daemon had begun to start
				// when it died.
				if there, derr := a.e.dial(a.id); derr == nil {
					shim, err = there, nil
				}
			}
			if err == nil {
				if !a.post(func() { a.replaced(shim) }) {
					shim.Close()
				}
				return
			}
			never := errdefs.IsNotFound(err)
			if !watched && (never || time.Since(began) > replacePatience) {
				watched = true
				a.log.Error("the container runs on without a shim: no new one could be started", "error", err)
				a.post(a.unreplaced)
				go a.watchProcess(rec)
			}
			if never {
				return
			}
			timer := time.NewTimer(delay)
			select {
			case <-timer.C:
			case <-a.quit:
				timer.Stop()
				return
			case <-a.e.closing:
				timer.Stop()
				a.post(a.unreplaced)
				return
			}
			if v := a.view.Load(); watched && (v.shim != nil || !v.state.Alive()) {
				return // it ended meanwhile
			}
		}
	}()
}

func (e *Engine) dial(id string) (Shim, error) {
	ctx, cancel := context.WithTimeout(context.Background(), helloTimeout)
	defer cancel()
	return e.shims.Dial(ctx, e.store.RunDir(id))
}

// unreplaced lets what waited for a new shim go on without one, in the loop.
func (a *actor) unreplaced() {
	if a.replacing {
		a.replacing = false
		a.publish()
		a.unpark()
	}
}

// replaced takes the new shim, in the loop.
func (a *actor) replaced(shim Shim) {
	a.replacing = false
	if a.shim != nil || !a.state.Alive() || a.e.observes.Load() {
		shim.Close() // the container keeps it; the next to look finds it
		a.unpark()
		return
	}
	a.log.Info("a new shim has adopted the container", "shim", shim.Hello().Pid)
	stopping := a.state == container.Stopping
	a.rec = shim.Hello().State
	a.adopt(shim)
	go a.giveWaits(shim)
	if stopping {
		// Whoever asked for the stop waits for it.
		a.state = container.Stopping
		how := a.halting
		go func() {
			if _, err := shim.Stop(context.Background(), how); err != nil && !errdefs.IsUnavailable(err) {
				a.log.Error("the new shim could not stop the container", "error", err)
			}
		}()
	}
	a.publish()
	a.unpark()
}

// adopter starts the shim that takes over. ErrNotFound: it can't be done, now
// or later.
func (e *Engine) adopter(a *actor, rec proto.State) (Shim, error) {
	run := e.store.RunDir(a.id)
	told, ok := e.shims.(bootstraps)
	if !ok {
		return nil, notFound("this daemon can't replace shims")
	}
	boot, err := told.Bootstrap(run)
	if err != nil {
		return nil, err // not there: the last shim was too old
	}
	if boot.Life != rec.Life || boot.ID != a.id {
		return nil, notFound("%s is of another life", filepath.Join(run, proto.BootstrapFile))
	}
	ctx, cancel := context.WithTimeout(context.Background(), replaceLimit)
	defer cancel()

	v := a.view.Load()
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if nets, ok := e.networks.(reserver); ok && v.sandbox.ID != "" {
		for _, r := range nets.Reserve(ctx, v.sandbox) {
			boot.Ports = append(boot.Ports, proto.Port{Proto: r.Proto, Target: r.Target})
			files = append(files, r.File)
		}
	}
	failpoint.Here("replace.reserved")

	// A copy, for the loop may drop what is held at any time.
	kept, drop := a.held.copy(rec)
	defer drop()
	if kept.Pidfd == nil && rec.Pid != 0 {
		if f := openProcess(rec); f != nil {
			defer f.Close()
			kept.Pidfd = f
		}
	}
	shim, err := e.shims.Spawn(ctx, client.Options{
		Binary: e.config.Load().ShimPath, Bootstrap: boot, Ports: files, Release: e.release, Adopt: &kept,
	})
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("%s: %s", e.config.Load().ShimPath, err) // it may come again
		}
		return nil, err
	}
	failpoint.Here("replace.spawned")
	return shim, nil
}

// copy duplicates what is held of a record's process.
func (h *held) copy(rec proto.State) (k client.Kept, drop func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if rec.Pid == 0 || h.pid != rec.Pid || h.start != rec.PidStart {
		return k, func() {}
	}
	dup := func(f *os.File) *os.File {
		if f == nil {
			return nil
		}
		raw, err := f.SyscallConn()
		if err != nil {
			return nil
		}
		fd := -1
		_ = raw.Control(func(n uintptr) { fd, _ = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 3) })
		if fd < 0 {
			return nil
		}
		return os.NewFile(uintptr(fd), f.Name())
	}
	k = client.Kept{Pidfd: dup(h.kept.Pidfd), Terminal: dup(h.kept.Terminal), Stdin: dup(h.kept.Stdin)}
	return k, func() {
		for _, f := range []*os.File{k.Pidfd, k.Terminal, k.Stdin} {
			if f != nil {
				f.Close()
			}
		}
	}
}

// sameBoot reports whether a record is of this boot of the machine.
func sameBoot(rec proto.State) bool {
	boot, err := bootID()
	return err == nil && (rec.BootID == "" || rec.BootID == boot)
}

// thisBoot is read once: it stays as long as this process lives.
var thisBoot atomic.Pointer[string]

func bootID() (string, error) {
	if id := thisBoot.Load(); id != nil {
		return *id, nil
	}
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err // and may be read the next time
	}
	id := strings.TrimSpace(string(text))
	thisBoot.Store(&id)
	return id, nil
}

// deathNoticed bounds how long a connection that failed may take to be seen as
// ended.
const deathNoticed = time.Second

// insist calls fn with the shim, and if that was killed meanwhile, once more
// with its successor. fn must bear to be called twice.
func (a *actor) insist(ctx context.Context, shim Shim, fn func(Shim) error) error {
	err := fn(shim)
	if !errdefs.IsUnavailable(err) {
		return err
	}
	timer := time.NewTimer(deathNoticed)
	defer timer.Stop()
	select {
	case <-shim.Done():
	case <-timer.C:
		return err
	case <-ctx.Done():
		return err
	}
	next := make(chan Shim, 1)
	var look func()
	look = func() {
		if a.shim == shim || a.replacing {
			a.parked = append(a.parked, look)
			return
		}
		next <- a.shim
	}
	if !a.post(look) {
		return err
	}
	select {
	case s := <-next:
		if s == nil {
			return err // it has ended
		}
		return fn(s)
	case <-a.quit:
	case <-ctx.Done():
	}
	return err
}
