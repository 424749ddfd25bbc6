// SPDX-License-Identifier: Apache-2.0

package eventserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"holdfast/internal/fdpass"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Options are the options of a Server.
type Options struct {
	Journal string // directory of the journal
	RunDir  string // directory of the event server's log
	// Started, if not nil, is called with the pid of each process that was
	// started.
	Started func(pid int)
}

// acceptTimeout is how long a new event server may take to accept its first client.
// It bounds the start of a process on a busy machine.
const acceptTimeout = 30 * time.Second

// Server is the daemon's side of an event server. Its methods may be called by
// several goroutines.
type Server struct {
	o Options

	mu   sync.Mutex // held while a process is started and while a request waits
	live atomic.Pointer[process]
}

// New makes a Server. Its process is started for the first client.
func New(o Options) *Server { return &Server{o: o} }

// process is an event server that this daemon has started.
type process struct {
	conn    *net.UnixConn
	answers chan report   // one for each request
	gone    chan struct{} // closed when the process has ended
	clients atomic.Int64
}

func (p *process) lives() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.gone:
		return false
	default:
		return true
	}
}

// Ready starts the process if none is running. If it returns no error, Serve
// may be called. ErrResourceExhausted: the process has as many clients as its
// limit of open files allows.
func (s *Server) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.ready()
	if err != nil {
		return err
	}
	var files unix.Rlimit // the process inherits it
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return os.NewSyscallError("getrlimit", err)
	}
	if most := (int64(min(files.Cur, math.MaxInt32)) - descriptorsBeside) / descriptorsEach; p.clients.Load() >= most {
		return errdefs.ErrResourceExhausted.WithMessage(fmt.Sprintf("the event server has %d clients, the most that its limit of open files allows", most))
	}
	return nil
}

func (s *Server) ready() (*process, error) {
	if p := s.live.Load(); p.lives() {
		return p, nil
	}
	p, err := s.start()
	if err != nil {
		return nil, fmt.Errorf("start the event server: %w", err)
	}
	s.live.Store(p)
	return p, nil
}

// Clients returns the number of clients that the process serves.
func (s *Server) Clients() int {
	if p := s.live.Load(); p.lives() {
		return int(p.clients.Load())
	}
	return 0
}

// Fits reports whether a request is small enough to be passed to the process.
func Fits(r Request) bool {
	text, err := json.Marshal(r)
	return err == nil && len(text) <= messageLimit
}

// Serve passes a client to the process, which serves it from then on. The
// caller keeps its own descriptor of the socket and closes it. If the process
// has just ended because it had no clients, Serve starts another one.
// ErrUnavailable: no process accepted the client.
func (s *Server) Serve(client *os.File, r Request) error {
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("pass a client to the event server: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for range 2 {
		var p *process
		if p, err = s.ready(); err != nil {
			return err
		}
		if err = p.give(client, text); !errors.Is(err, errGone) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("pass a client to the event server: %w: %w", errdefs.ErrUnavailable, err)
	}
	return nil
}

// errGone: the process ended before it accepted the client. Another process may
// accept it.
var errGone = errors.New("the process has ended")

// give sends one request and waits for its answer.
func (p *process) give(client *os.File, request []byte) error {
	if err := fdpass.Send(p.conn, request, client); errors.Is(err, os.ErrClosed) {
		return err // the client's socket
	} else if err != nil {
		p.conn.Close() // ends the process, or it has ended already
		<-p.gone
		return fmt.Errorf("%w: %w", errGone, err)
	}
	late := time.NewTimer(acceptTimeout)
	defer late.Stop()
	select {
	case r := <-p.answers:
		if r.Refused != "" {
			return errors.New(r.Refused)
		}
		return nil
	case <-p.gone:
		return errGone
	case <-late.C:
		// The process may still accept the client, so no other process may be
		// asked. Later requests go to another process; this one continues to
		// serve its clients.
		p.conn.Close()
		return fmt.Errorf("no answer within %s", acceptTimeout)
	}
}

// start starts a process. It outlives this one.
func (s *Server) start() (*process, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "event server"), os.NewFile(uintptr(pair[1]), "event server's end")
	defer ours.Close()
	defer theirs.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("a socket pair is a %T", c)
	}
	log, err := os.OpenFile(filepath.Join(s.o.RunDir, "events.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		conn.Close()
		return nil, err
	}
	defer log.Close()
	// Use the running binary, even if its file was replaced.
	cmd := exec.Command("/proc/self/exe", Command, s.o.Journal)
	cmd.Args[0] = processName // so that pidof holdfastd finds only the daemon
	cmd.Dir = "/"
	// Of the daemon's environment the process needs only GORACE, which says where a
	// race detector build reports. Its heap is nearly empty, so collecting it often
	// costs little and keeps it small.
	cmd.Env = []string{"GOMAXPROCS=2", "GOGC=25"}
	if report, ok := os.LookupEnv("GORACE"); ok {
		cmd.Env = append(cmd.Env, "GORACE="+report)
	}
	cmd.Stderr = log
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, err
	}
	if s.o.Started != nil {
		go s.o.Started(cmd.Process.Pid)
	}
	p := &process{conn: conn, answers: make(chan report, 1), gone: make(chan struct{})}
	go func() {
		p.listen()
		close(p.gone)
		conn.Close()
		_ = cmd.Wait()
	}()
	return p, nil
}

// listen reads reports until the process has ended.
func (p *process) listen() {
	buf := make([]byte, 4096)
	for {
		n, err := p.conn.Read(buf)
		if n == 0 || err != nil {
			return
		}
		var r report
		if json.Unmarshal(buf[:n], &r) != nil {
			return
		}
		p.clients.Store(int64(r.Clients))
		if r.Answer {
			p.answers <- r
		}
	}
}
