// SPDX-License-Identifier: Apache-2.0

package beside

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/errs"
	"holdfast/internal/fdpass"
)

const (
	// startTimeout bounds the start of a process, on a busy machine and with much
	// to read.
	startTimeout = 60 * time.Second
	// passTimeout bounds how long a running process may take to accept a client.
	passTimeout = 30 * time.Second
	// maxLog is the size in bytes from which the log is begun anew with the next
	// process.
	maxLog = 1 << 20
)

// ErrGone: the process ended before it accepted the client, or none runs.
var ErrGone = errors.New("the process has ended")

// Process is the daemon's side of a process. Its fields are set once. Start may not
// be called twice at the same time; the other methods may be called by several
// goroutines.
type Process struct {
	// Name is what messages call the process, such as "the build process".
	Name string
	// Binary is the path of the program, and Args are its arguments.
	Binary string
	Args   []string
	// Dir is the directory of the lock and the sockets, and Log the name of the log
	// in it.
	Dir, Log string
	// Started, if not nil, is called with the pid of each process that was started.
	Started func(pid int)
	// Ended, if not nil, is called when a process that this daemon has started has
	// ended.
	Ended func()
}

// Installed reports whether the program is there.
func (p *Process) Installed() bool {
	_, err := exec.LookPath(p.Binary)
	return err == nil
}

// Alive reports whether a process holds the lock.
func (p *Process) Alive() (bool, error) {
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return false, p.wrap(err)
	}
	f, err := os.OpenFile(LockPath(p.Dir), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return false, p.wrap(err)
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, os.NewSyscallError("flock", err)
}

func (p *Process) wrap(err error) error { return fmt.Errorf("%s: %w", p.Name, err) }

// Start starts a process and waits until it is ready. Errors: ErrUnavailable, with
// the reason that the process gives.
func (p *Process) Start(ctx context.Context) error {
	path := filepath.Join(p.Dir, p.Log)
	if st, err := os.Stat(path); err == nil && st.Size() > maxLog {
		if err := os.Truncate(path, 0); err != nil {
			return p.wrap(err)
		}
	}
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return p.wrap(err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return p.wrap(err)
	}
	defer r.Close()
	cmd := exec.Command(p.Binary, p.Args...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	if p.Started != nil {
		go p.Started(cmd.Process.Pid)
	}
	go func() {
		_ = cmd.Wait()
		if p.Ended != nil {
			p.Ended()
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer stop()
	word, err := io.ReadAll(io.LimitReader(r, MaxMessage))
	switch {
	case ctx.Err() != nil:
		return errs.Unavailable("%s did not become ready: %v; see %s", p.Name, context.Cause(ctx), log.Name())
	case err != nil:
		return fmt.Errorf("start %s: %w", p.Name, err)
	case string(word) == ReadyWord:
		return nil
	case len(word) == 0:
		return errs.Unavailable("%s ended before it was ready; see %s", p.Name, log.Name())
	}
	return errs.Unavailable("start %s: %s", p.Name, strings.TrimSpace(string(word)))
}

// dial connects to the process.
func (p *Process) dial() (*net.UnixConn, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: ControlPath(p.Dir), Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	return conn, nil
}

// Pass passes a client to the process, with the headers of every answer. The caller
// closes its own descriptor. Errors: ErrGone; ErrUnavailable if the process refuses
// the client.
func (p *Process) Pass(client Client, headers map[string][]string) error {
	conn, err := p.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(passTimeout)); err != nil {
		return err
	}
	head := client.Pending
	message, err := json.Marshal(Message{Headers: headers, Length: len(head)})
	if err != nil {
		return err
	}
	if err := fdpass.Send(conn, message, client.File); err != nil {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	for len(head) > 0 {
		n := min(len(head), MaxMessage)
		if _, err := conn.Write(head[:n]); err != nil {
			return fmt.Errorf("%w: %w", ErrGone, err)
		}
		head = head[n:]
	}
	buf := make([]byte, MaxMessage)
	n, err := conn.Read(buf)
	if n == 0 || errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
		return ErrGone
	}
	if err != nil {
		return fmt.Errorf("pass a client to %s: %w", p.Name, err)
	}
	var a Answer
	if err := json.Unmarshal(buf[:n], &a); err != nil {
		return fmt.Errorf("pass a client to %s: %w", p.Name, err)
	}
	if a.Refused != "" {
		return errs.Unavailable("%s refuses a client: %s", p.Name, a.Refused)
	}
	return nil
}

// Stop ends a process, and with StopIdle only one that has nothing to do. It waits
// until the process has ended. If none runs, it does nothing.
func (p *Process) Stop(what string) {
	conn, err := p.dial()
	if err != nil {
		return
	}
	defer conn.Close()
	text, err := json.Marshal(Message{Stop: what})
	if err == nil && conn.SetDeadline(time.Now().Add(passTimeout)) == nil {
		_, _ = conn.Write(text)
		_, _ = conn.Read(make([]byte, 1)) // it has read the message, or has ended
	}
}

// Watch returns when the process has ended, or the context ends. It returns at once
// if none runs.
func (p *Process) Watch(ctx context.Context) {
	conn, err := p.dial()
	if err != nil {
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	text, err := json.Marshal(Message{Watch: true})
	if err == nil {
		_, _ = conn.Write(text)
		_, _ = conn.Read(make([]byte, 1))
	}
}

// Ask makes a request of the daemon itself, over a client's connection that give passes
// to the process. The caller closes the body of the answer.
func (p *Process) Ask(ctx context.Context, r *http.Request, give func(Client) error) (*http.Response, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	near, far := os.NewFile(uintptr(fds[0]), "daemon"), os.NewFile(uintptr(fds[1]), "client")
	conn, err := net.FileConn(near)
	near.Close()
	if err != nil {
		far.Close()
		return nil, err
	}
	var request bytes.Buffer
	err = r.Write(&request)
	if err == nil {
		err = give(Client{File: far, Pending: request.Bytes()})
	}
	far.Close()
	if err != nil {
		conn.Close()
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	resp, err := http.ReadResponse(bufio.NewReader(conn), r)
	if err != nil {
		stop()
		conn.Close()
		return nil, fmt.Errorf("ask %s: %w", p.Name, errors.Join(err, ctx.Err()))
	}
	resp.Body = &answerBody{resp.Body, conn, stop}
	return resp, nil
}

// answerBody closes the connection with the body.
type answerBody struct {
	io.ReadCloser
	conn net.Conn
	stop func() bool
}

func (b *answerBody) Close() error {
	b.stop()
	return errors.Join(b.ReadCloser.Close(), b.conn.Close())
}

// Get makes a request of the daemon itself, as Ask does, and decodes the answer.
func (p *Process) Get(ctx context.Context, path string, give func(Client) error, answer any) error {
	r, err := http.NewRequest(http.MethodGet, "http://daemon"+path, nil)
	if err != nil {
		return err
	}
	resp, err := p.Ask(ctx, r, give)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, MaxMessage))
		return fmt.Errorf("ask %s: %s: %s", p.Name, resp.Status, bytes.TrimSpace(text))
	}
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		return fmt.Errorf("ask %s: %w", p.Name, err)
	}
	return nil
}
