// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/build"
	"golang.org/x/sys/unix"

	"holdfast/internal/build/stores"
	"holdfast/internal/errs"
	"holdfast/internal/fdpass"
	"holdfast/internal/network"
)

// Stores are what the build process uses of the daemon, and Config what it has to
// know of the daemon's configuration.
type (
	Stores = stores.Stores
	Config = stores.Config
	GC     = stores.GC
	Rule   = stores.Rule
)

// Options are the options of a Builder.
type Options struct {
	// Binary is the path of holdfast-build.
	Binary   string
	DataRoot string
	ExecRoot string
	// Stores are lent to the build process. Networks is set by New.
	Stores   Stores
	Networks Sandboxes
	// Mode returns a network mode with the full ID of the container in it, if any.
	Mode func(ctx context.Context, mode string) (string, error)
	// Names writes the file that the name server of a step on a user-defined network
	// answers from, and returns the step's resolv.conf.
	Names func(view string, s network.Sandbox) ([]byte, error)
	Log   *slog.Logger
	// Started, if not nil, is called with the pid of each process that was started.
	Started func(pid int)
}

const (
	// startTimeout bounds the start of the build process, on a busy machine and
	// with a large cache.
	startTimeout = 60 * time.Second
	// passTimeout bounds how long a running build process may take to accept a
	// client.
	passTimeout = 30 * time.Second
	// maxLog is the size in bytes from which the log is begun anew with the next
	// process.
	maxLog = 1 << 20
	// closeTimeout bounds how long Close waits for calls that have begun.
	closeTimeout = 10 * time.Second
)

// Builder passes requests to the build process. Its methods may be called by several
// goroutines.
type Builder struct {
	o        Options
	networks *networks

	mu     sync.Mutex // held while the stores are opened and a process is started
	server *stores.Server
	closed bool
}

// New makes a Builder. It starts nothing.
func New(o Options) *Builder {
	b := &Builder{o: o, networks: newNetworks(o)}
	b.o.Stores.Networks = b.networks
	return b
}

// Installed reports whether there is a program that builds.
func (b *Builder) Installed() bool {
	_, err := exec.LookPath(b.o.Binary)
	return err == nil
}

// Used reports whether anything was ever built in this data root.
func (b *Builder) Used() bool {
	_, err := os.Stat(StateDir(b.o.DataRoot))
	return err == nil
}

// Resume is called when the daemon has restored everything. It lends the stores to a
// build process that an earlier daemon started. If that process was killed, Resume
// removes what it left.
func (b *Builder) Resume(ctx context.Context) error {
	if _, err := os.Stat(Dir(b.o.ExecRoot)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	alive, err := b.alive()
	if err != nil {
		return err
	}
	if alive {
		return b.lend()
	}
	b.networks.sweep(ctx)
	if left, err := os.ReadDir(RuncDir(b.o.ExecRoot)); err == nil && len(left) > 0 {
		// A process that starts sweeps first, and ends soon.
		b.o.Log.Warn("the build process was killed during a build: what is left of the build is removed", "steps", len(left))
		go func() {
			if err := b.Ready(context.WithoutCancel(ctx)); err != nil {
				b.o.Log.Error("what is left of a build can't be removed", "error", err)
			}
		}()
	}
	return nil
}

// Ready makes sure that a build process runs and can use the stores. Errors:
// ErrNotImplemented if it is not installed, ErrUnavailable.
func (b *Builder) Ready(ctx context.Context) error {
	if !b.Installed() {
		return errs.NotImplemented("building images needs the program holdfast-build, which is not at %s: install it there", b.o.Binary)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errs.Unavailable("the daemon is being replaced: ask again")
	}
	alive, err := b.alive()
	if err != nil {
		return err
	}
	if alive {
		return b.lend()
	}
	b.networks.sweep(ctx)
	return b.start(ctx)
}

// alive reports whether a build process holds the lock.
func (b *Builder) alive() (bool, error) {
	if err := os.MkdirAll(Dir(b.o.ExecRoot), 0o700); err != nil {
		return false, fmt.Errorf("builds: %w", err)
	}
	f, err := os.OpenFile(LockPath(b.o.ExecRoot), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return false, fmt.Errorf("builds: %w", err)
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, os.NewSyscallError("flock", err)
}

// lend opens the socket of the stores. The caller holds mu.
func (b *Builder) lend() error {
	if b.server != nil {
		return nil
	}
	path := StoresPath(b.o.ExecRoot)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("builds: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("builds: lend the stores: %w", err)
	}
	l.SetUnlinkOnClose(false) // the next daemon may have made its own by then
	b.server = stores.NewServer(b.o.Stores, b.o.Log)
	go func(s *stores.Server) {
		if err := s.Serve(l); err != nil {
			b.o.Log.Error("the build process can no longer use the stores", "error", err)
		}
	}(b.server)
	return nil
}

// start starts a build process and waits until it is ready. The caller holds mu.
func (b *Builder) start(ctx context.Context) error {
	if err := b.lend(); err != nil {
		return err
	}
	path := filepath.Join(Dir(b.o.ExecRoot), logFile)
	if st, err := os.Stat(path); err == nil && st.Size() > maxLog {
		if err := os.Truncate(path, 0); err != nil {
			return fmt.Errorf("builds: %w", err)
		}
	}
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("builds: %w", err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("builds: %w", err)
	}
	defer r.Close()
	cmd := exec.Command(b.o.Binary, "--data-root", b.o.DataRoot, "--exec-root", b.o.ExecRoot)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("start the build process: %w", err)
	}
	if b.o.Started != nil {
		go b.o.Started(cmd.Process.Pid)
	}
	server := b.server
	go func() {
		_ = cmd.Wait()
		server.CloseWriters()
	}()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer stop()
	word, err := io.ReadAll(io.LimitReader(r, MaxMessage))
	switch {
	case ctx.Err() != nil:
		return errs.Unavailable("the build process did not become ready: %v; see %s", context.Cause(ctx), log.Name())
	case err != nil:
		return fmt.Errorf("start the build process: %w", err)
	case string(word) == "+":
		return nil
	case len(word) == 0:
		return errs.Unavailable("the build process ended before it was ready; see %s", log.Name())
	}
	return errs.Unavailable("start the build process: %s", strings.TrimSpace(string(word)))
}

// Give passes a client to the build process, with head, which are the bytes of the
// request that the daemon has read. The caller closes its own descriptor. If the
// process has just ended, another is started.
func (b *Builder) Give(ctx context.Context, client *os.File, head []byte, headers map[string][]string) error {
	var err error
	for range 3 {
		if err = b.Ready(ctx); err != nil {
			return err
		}
		if err = b.pass(client, head, headers); !errors.Is(err, errGone) {
			return err
		}
	}
	return errs.Unavailable("pass a client to the build process: %v", err)
}

// errGone: the process ended before it accepted the client.
var errGone = errors.New("the build process has ended")

func (b *Builder) pass(client *os.File, head []byte, headers map[string][]string) error {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: ControlPath(b.o.ExecRoot), Net: "unixpacket"})
	if err != nil {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(passTimeout)); err != nil {
		return err
	}
	message, err := json.Marshal(Client{Headers: headers, Length: len(head)})
	if err != nil {
		return err
	}
	if err := fdpass.Send(conn, message, client); err != nil {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	for len(head) > 0 {
		n := min(len(head), MaxMessage)
		if _, err := conn.Write(head[:n]); err != nil {
			return fmt.Errorf("%w: %w", errGone, err)
		}
		head = head[n:]
	}
	buf := make([]byte, MaxMessage)
	n, err := conn.Read(buf)
	if n == 0 || errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
		return errGone
	}
	if err != nil {
		return fmt.Errorf("pass a client to the build process: %w", err)
	}
	var a Answer
	if err := json.Unmarshal(buf[:n], &a); err != nil {
		return fmt.Errorf("pass a client to the build process: %w", err)
	}
	if a.Refused != "" {
		return errs.Unavailable("the build process refuses a client: %s", a.Refused)
	}
	return nil
}

// Usage asks the build process what the cache takes on disk.
func (b *Builder) Usage(ctx context.Context) (du build.DiskUsage, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return du, os.NewSyscallError("socketpair", err)
	}
	near, far := os.NewFile(uintptr(fds[0]), "daemon"), os.NewFile(uintptr(fds[1]), "client")
	conn, err := net.FileConn(near)
	near.Close()
	if err != nil {
		far.Close()
		return du, err
	}
	defer conn.Close()
	err = b.Give(ctx, far, []byte("GET "+UsagePath+" HTTP/1.1\r\nHost: build\r\n\r\n"), nil)
	far.Close()
	if err != nil {
		return du, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return du, fmt.Errorf("the cache of builds: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, MaxMessage))
		return du, fmt.Errorf("the cache of builds: %s: %s", resp.Status, bytes.TrimSpace(text))
	}
	if err := json.NewDecoder(resp.Body).Decode(&du); err != nil {
		return du, fmt.Errorf("the cache of builds: %w", err)
	}
	return du, nil
}

// Stop ends a build process that has nothing to do. With all set it ends any, and waits
// until what its builds have on the host is removed.
func (b *Builder) Stop(all bool) {
	what := StopIdle
	if all {
		what = StopAll
	}
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: ControlPath(b.o.ExecRoot), Net: "unixpacket"})
	if err != nil {
		return // none is running
	}
	defer conn.Close()
	text, err := json.Marshal(Client{Stop: what})
	if err == nil && conn.SetDeadline(time.Now().Add(passTimeout)) == nil {
		_, _ = conn.Write(text)
		_, _ = conn.Read(make([]byte, 1)) // it has read the message, or has ended
	}
}

// Close stops lending the stores. The build process waits for the next daemon.
func (b *Builder) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	if b.server == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := b.server.Shutdown(ctx)
	b.server = nil
	return err
}
