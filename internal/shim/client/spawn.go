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

// Options are what a shim is started with.
type Options struct {
	Binary    string // path of holdfast-shim
	Bootstrap proto.Bootstrap
	// Ports are the reserved sockets, in the order of Bootstrap.Ports. They
	// stay the caller's, who closes them when Spawn returns.
	Ports   []*os.File
	Release string // the daemon's, for people
	// Adopt makes the shim take over the container of one that was killed; see
	// ReadBootstrap.
	Adopt *Kept
}

// Kept is what a daemon holds of a running container besides its shim, so that
// the two can't both lose it. Each may be nil; the files stay the caller's.
type Kept struct {
	Pidfd    *os.File // of the container's process, opened while it lived
	Terminal *os.File // the terminal's master
	Stdin    *os.File // the writing end of its input
}

// Spawn starts a shim in a session of its own and says hello. The shim outlives
// this process; as long as both live, its end is waited for here. When ctx ends
// or hello fails the shim ends as well, for its container was not started, or,
// with Adopt, is there for the next one.
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
	// One thread of Go code is enough for one container, and costs less memory.
	// The heap may grow to 1 MiB before it is collected and not to 4 MiB: most
	// shims never come as far, where a collection would only add its tables.
	cmd.Env = append(environment(), "GOMAXPROCS=1", "GOGC=25")
	cmd.Stdin, cmd.Stderr = theirs, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		conn.Close()
		return fail(err)
	}
	// Waiting for a process keeps a thread. As long as the connection is there
	// the shim is, and that can be waited for without one.
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
		cmd.Process.Kill() // no container is its child
		return fail(withLog(err, b.RunDir, logStart))
	}
	lives = true
	go func() {
		<-s.Done()
		cmd.Wait()
	}()
	return s, nil
}

// environment is what a shim and its runtime need of ours, and no more: it
// stays in memory as long as the container runs.
func environment() []string {
	var env []string
	for _, name := range []string{"PATH", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// withLog adds what the shim said before it ended.
func withLog(err error, runDir string, from int64) error {
	f, oerr := os.Open(filepath.Join(runDir, proto.LogFile))
	if oerr != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 2048)
	n, _ := f.ReadAt(buf, from)
	if said := strings.TrimSpace(string(buf[:n])); said != "" {
		return fmt.Errorf("%w; the shim said: %s", err, said)
	}
	return err
}

// daemon is how a daemon of a release greets.
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

// greetAndFollow says hello and subscribes in one breath, as everybody does who
// finds a shim: it wakes up once for both. What it tells waits for Subscribe.
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
	s.early = follow
	s.mu.Unlock()
	if err := s.conn.SendTogether(hello.Message, follow.Message); err != nil {
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

// Dial connects to the shim of a run directory. ErrNotFound: nobody listens
// there, the shim is gone. ErrUnavailable, or the context's error: it could not
// be told, and nothing may be concluded.
func Dial(ctx context.Context, runDir, release string) (*Shim, error) {
	return dial(ctx, runDir, daemon(release))
}

// DialGuest is Dial for one who is no daemon: the shim does not leave to it
// what is a daemon's to do.
func DialGuest(ctx context.Context, runDir string) (*Shim, error) {
	return dial(ctx, runDir, proto.Hello{Version: proto.Version})
}

func dial(ctx context.Context, runDir string, as proto.Hello) (*Shim, error) {
	fail := func(kind, err error) (*Shim, error) {
		return nil, fmt.Errorf("connect to the shim in %s: %w: %w", runDir, kind, err)
	}
	// Through a descriptor of the directory: its path may be longer than a
	// socket's may be.
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
	default: // EAGAIN: its queue is full
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
	if as.Daemon == "" { // a guest mostly asks one thing and goes
		greet = s.greet
	}
	if err := greet(ctx, as); err != nil {
		s.Close()
		return nil, fmt.Errorf("connect to the shim in %s: %w", runDir, err)
	}
	return s, nil
}
