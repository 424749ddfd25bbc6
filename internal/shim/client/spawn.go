// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
)

// Options are the parameters of Spawn.
type Options struct {
	Binary    string // path of holdfast-shim
	Bootstrap proto.Bootstrap
	// Ports are the reserved sockets, in the order of Bootstrap.Ports. They remain
	// the caller's, which closes them when Spawn returns.
	Ports   []*os.File
	Release string // the daemon's release, for people
	// Adopt makes the shim adopt the container of a shim that was killed; see
	// ReadBootstrap.
	Adopt *Kept
}

// Kept has a daemon's copies of descriptors of a running container, so that they
// are lost only if daemon and shim both die. Each may be nil. The files remain the
// caller's.
type Kept struct {
	Pidfd    *os.File // of the container's process, opened while it lived
	Terminal *os.File // the terminal's master
	Stdin    *os.File // the write end of its input
}

// Spawn starts a shim in its own session and sends the hello. The shim outlives
// this process. While both live, this process reaps the shim when it exits. If ctx
// ends or the hello fails the shim is stopped: its container was not started yet
// or, with Adopt, can be adopted by another shim.
func Spawn(ctx context.Context, o Options) (*Shim, error) {
	b := o.Bootstrap
	fail := func(err error) (*Shim, error) {
		return nil, fmt.Errorf("start shim of %s: %w", b.ID, err)
	}
	if len(o.Ports) != len(b.Ports) {
		return fail(fmt.Errorf("%w: %d port sockets for %d ports", errdefs.ErrInvalidArgument, len(o.Ports), len(b.Ports)))
	}
	b.Version = proto.Version
	files := o.Ports
	b.Adopt = nil
	if k := o.Adopt; k != nil {
		b.Adopt = &proto.Adopt{Pidfd: k.Pidfd != nil, Terminal: k.Terminal != nil, Stdin: k.Stdin != nil}
		for _, f := range []*os.File{k.Pidfd, k.Terminal, k.Stdin} {
			if f != nil {
				files = append(files[:len(files):len(files)], f)
			}
		}
	}
	log, err := os.OpenFile(filepath.Join(b.RunDir, proto.LogFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fail(err)
	}
	defer log.Close()
	logStart, _ := log.Seek(0, 2)

	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fail(os.NewSyscallError("socketpair", err))
	}
	theirs := os.NewFile(uintptr(pair[1]), "shim's end")
	conn, err := proto.NewConn(pair[0])
	if err != nil {
		theirs.Close()
		return fail(err)
	}
	cmd := exec.Command(o.Binary, b.ID)
	cmd.Args[0] = "holdfast-shim"
	cmd.Dir = "/"
	// One thread of Go code suffices for one container and costs less memory. The
	// first collection starts at a heap of 1 MiB instead of 4 MiB. Most shims never
	// get there, where a collection would only add the collector's tables.
	cmd.Env = append(environment(), "GOMAXPROCS=1", "GOGC=25")
	cmd.Stdin, cmd.Stderr = theirs, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		conn.Close()
		return fail(err)
	}
	// cmd.Wait would occupy a thread. The connection lasts as long as the shim, and
	// waiting for its end needs no thread.
	lives := false
	defer func() {
		if !lives {
			go cmd.Wait()
		}
	}()

	fds := make([]int, len(files))
	for i, f := range files {
		if fds[i], err = descriptor(f); err != nil {
			conn.Close()
			return fail(err)
		}
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err = conn.Send(&b, fds...)
	if !stop() {
		return fail(context.Cause(ctx))
	}
	if err != nil {
		conn.Close()
		return fail(withLog(err, b.RunDir, logStart))
	}
	s := newShim(conn)
	if err := s.greet(ctx, daemon(o.Release)); err != nil {
		s.conn.Close()
		cmd.Process.Kill() // it has no container as a child
		return fail(withLog(err, b.RunDir, logStart))
	}
	lives = true
	go func() {
		<-s.Done()
		cmd.Wait()
	}()
	return s, nil
}

// environment returns the variables that a shim and its runtime need, and no
// others: they stay in memory as long as the container runs. GORACE says where a
// race detector build reports; it is set for no other build.
func environment() []string {
	var env []string
	for _, name := range []string{"PATH", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR", "GORACE"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// withLog adds what the shim logged before it exited.
func withLog(err error, runDir string, from int64) error {
	f, oerr := os.Open(filepath.Join(runDir, proto.LogFile))
	if oerr != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 2048)
	n, _ := f.ReadAt(buf, from)
	if said := strings.TrimSpace(string(buf[:n])); said != "" {
		return fmt.Errorf("%w; the shim logged: %s", err, said)
	}
	return err
}

// daemon returns the Hello of a daemon of this release.
func daemon(release string) proto.Hello {
	if release == "" {
		release = "unknown"
	}
	return proto.Hello{Version: proto.Version, Daemon: release}
}

func (s *Shim) greet(ctx context.Context, as proto.Hello) error {
	q, err := s.question(proto.MethodHello, &as, 0)
	if err != nil {
		return err
	}
	if err := s.conn.Send(q.Message); err != nil {
		return s.unasked(err, q)
	}
	return s.greeted(ctx, q)
}

// greetAndFollow sends all that every daemon asks of a shim that it has found in one
// write, so that the shim wakes up only once: that it waits for acknowledgements from now
// on (Heard), the hello, and the subscription. Heard comes first. What the shim answered
// its clients before Heard is in the state of the hello, and what it answers afterwards
// waits until the daemon has handled the events of the subscription, which are kept until
// Subscribe is called.
func (s *Shim) greetAndFollow(ctx context.Context, as proto.Hello) error {
	hello, err := s.question(proto.MethodHello, &as, 0)
	if err != nil {
		return err
	}
	follow, err := s.question(proto.MethodSubscribe, &proto.Subscribe{}, 0)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.early, s.begun = follow, true
	s.next++
	heard, err := heardMessage(s.next, &proto.Heard{})
	s.mu.Unlock()
	if err != nil {
		return s.unasked(err, hello, follow)
	}
	if err := s.conn.SendTogether(heard, hello.Message, follow.Message); err != nil {
		return s.unasked(err, hello, follow)
	}
	return s.greeted(ctx, hello)
}

func (s *Shim) greeted(ctx context.Context, q *question) error {
	var hello proto.HelloReply
	if _, err := s.answer(ctx, q, &hello); err != nil {
		return err
	}
	s.mu.Lock()
	s.hello = hello
	s.mu.Unlock()
	return nil
}

// Dial connects to the shim of a run directory. ErrNotFound: the shim has exited,
// as nothing listens there. ErrUnavailable, or the context's error: it is unknown
// whether the shim lives.
func Dial(ctx context.Context, runDir, release string) (*Shim, error) {
	return dial(ctx, runDir, daemon(release))
}

// DialGuest is Dial for a client that is not a daemon: the shim does not leave a
// daemon's duties, such as the removal of the container, to it.
func DialGuest(ctx context.Context, runDir string) (*Shim, error) {
	return dial(ctx, runDir, proto.Hello{Version: proto.Version})
}

func dial(ctx context.Context, runDir string, as proto.Hello) (*Shim, error) {
	fail := func(kind, err error) (*Shim, error) {
		return nil, fmt.Errorf("connect to the shim in %s: %w: %w", runDir, kind, err)
	}
	// Connect through a descriptor of the directory, whose path may be longer than a
	// socket address can be.
	dir, err := unix.Open(runDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return fail(errdefs.ErrNotFound, err)
	} else if err != nil {
		return fail(errdefs.ErrUnavailable, err)
	}
	defer unix.Close(dir)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fail(errdefs.ErrUnavailable, os.NewSyscallError("socket", err))
	}
	addr := &unix.SockaddrUnix{Name: "/proc/self/fd/" + strconv.Itoa(dir) + "/" + proto.SocketFile}
	for {
		err = unix.Connect(fd, addr)
		if err != unix.EINTR {
			break
		}
	}
	switch {
	case err == nil:
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		unix.Close(fd)
		return fail(errdefs.ErrNotFound, err)
	default: // EAGAIN: the backlog of the socket is full
		unix.Close(fd)
		return fail(errdefs.ErrUnavailable, err)
	}
	conn, err := proto.NewConn(fd)
	if err != nil {
		unix.Close(fd)
		return fail(errdefs.ErrUnavailable, err)
	}
	s := newShim(conn)
	greet := s.greetAndFollow
	if as.Daemon == "" { // a guest usually makes one request and needs no events
		greet = s.greet
	}
	if err := greet(ctx, as); err != nil {
		s.Close()
		return nil, fmt.Errorf("connect to the shim in %s: %w", runDir, err)
	}
	return s, nil
}
