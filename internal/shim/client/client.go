// SPDX-License-Identifier: Apache-2.0

// Package client is the daemon's side of the shim protocol. It starts shims,
// connects to running ones, and reads the files of those that have exited. It
// knows containers only through internal/shim/proto. It makes no decisions: the
// engine decides what an unreachable shim means.
//
// Errors carry a kind of github.com/containerd/errdefs. An error that the shim
// returned is also a *proto.Error, by errors.As, which has the exit code of a
// failed start.
package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
)

// Shim is a connection to a shim. It is safe for concurrent use. Cancelling a
// context ends the wait for an answer, never the effect of the call.
type Shim struct {
	conn  *proto.Conn
	hello proto.HelloReply
	done  chan struct{}

	mu      sync.Mutex
	next    uint64
	calls   map[uint64]chan *answer
	ended   error // set when the connection is over
	events  []proto.Event
	fn      func(proto.Event)
	early   *question     // the subscription that was sent together with the hello
	passed  chan struct{} // closed when the events that came before Subscribe were passed on
	pending chan struct{} // one token: there are events, or the connection has ended
	heard   *proto.Heard  // the acknowledgement to send next
	saying  bool          // a goroutine sends acknowledgements
	begun   bool          // the shim waits for acknowledgements
}

// answer is a response with the descriptors that came with it.
type answer struct {
	*proto.Message
	fds []int
}

func newShim(conn *proto.Conn) *Shim {
	s := &Shim{conn: conn, done: make(chan struct{}), calls: map[uint64]chan *answer{}, pending: make(chan struct{}, 1)}
	go s.receive()
	go s.dispatch()
	return s
}

// receive distributes incoming messages. It never blocks on a receiver.
func (s *Shim) receive() {
	for {
		m := &proto.Message{}
		err := s.conn.Receive(m)
		var fds []int
		if err == nil && m.FDs > 0 {
			fds, err = s.conn.TakeFDs(m.FDs)
		}
		taken := false
		s.mu.Lock()
		switch {
		case err != nil:
			s.ended = err
			for id, ch := range s.calls {
				delete(s.calls, id)
				close(ch)
			}
		case m.Event != nil:
			s.events = append(s.events, *m.Event)
		default:
			if ch := s.calls[m.ID]; ch != nil {
				delete(s.calls, m.ID)
				ch <- &answer{m, fds}
				taken = true
			}
		}
		s.mu.Unlock()
		if !taken {
			closeFDs(fds) // the caller was cancelled
		}
		if err != nil || m.Event != nil {
			s.wake()
		}
		if err != nil {
			s.conn.DropFDs()
			return
		}
	}
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

func (s *Shim) wake() {
	select {
	case s.pending <- struct{}{}:
	default:
	}
}

// dispatch calls the subscriber for the events, in order, and closes done after the
// last one.
func (s *Shim) dispatch() {
	defer close(s.done)
	for range s.pending {
		s.mu.Lock()
		events, fn, ended, passed := s.events, s.fn, s.ended, s.passed
		s.passed = nil
		if s.early != nil {
			events = nil // keep them until Subscribe is called
		} else {
			s.events = nil
		}
		s.mu.Unlock()
		for _, e := range events {
			if fn != nil {
				fn(e)
			}
		}
		if passed != nil {
			close(passed)
		}
		if ended != nil {
			return
		}
	}
}

// Done is closed when the connection has ended and all received events were passed
// to the subscriber.
func (s *Shim) Done() <-chan struct{} { return s.done }

// Close closes the connection. The shim keeps running.
func (s *Shim) Close() error { return s.conn.Close() }

// Hello returns the shim's reply from when the connection was made. Release and
// Version are updated by an Upgrade over this connection.
func (s *Shim) Hello() proto.HelloReply {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hello
}

// call sends a request and waits for its answer, which is decoded into result
// unless that is nil.
func (s *Shim) call(ctx context.Context, method string, params, result any, fds ...int) error {
	got, err := s.callFDs(ctx, method, params, result, fds...)
	closeFDs(got)
	return err
}

// callFDs is call for methods whose answer has descriptors. They are close-on-exec
// and belong to the caller.
func (s *Shim) callFDs(ctx context.Context, method string, params, result any, fds ...int) ([]int, error) {
	q, err := s.question(method, params, len(fds))
	if err != nil {
		return nil, err
	}
	if err := s.conn.Send(q.Message, fds...); err != nil {
		return nil, s.unasked(err, q)
	}
	return s.answer(ctx, q, result)
}

// question is a request with the channel for its answer.
type question struct {
	*proto.Message
	reply chan *answer
}

// question makes a request. From then on its answer is accepted.
func (s *Shim) question(method string, params any, fds int) (*question, error) {
	q := &question{&proto.Message{Method: method, FDs: fds}, make(chan *answer, 1)}
	if params != nil {
		p, err := proto.Marshal(params)
		if err != nil {
			return nil, fmt.Errorf("shim %s: %w: %w", method, errdefs.ErrInvalidArgument, err)
		}
		q.Params = p
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended != nil {
		return nil, s.gone(method)
	}
	s.next++
	q.ID = s.next
	s.calls[q.ID] = q.reply
	return q, nil
}

func (s *Shim) forget(questions ...*question) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range questions {
		delete(s.calls, q.ID)
	}
}

// unasked returns the error for requests that could not be sent. It names the first
// one.
func (s *Shim) unasked(err error, questions ...*question) error {
	s.forget(questions...)
	kind := error(errdefs.ErrUnavailable)
	if errors.Is(err, proto.ErrFrame) {
		kind = errdefs.ErrInvalidArgument
	}
	return fmt.Errorf("shim %s: %w: %w", questions[0].Method, kind, err)
}

// answer waits for the answer to a request that was sent.
func (s *Shim) answer(ctx context.Context, q *question, result any) ([]int, error) {
	select {
	case m, ok := <-q.reply:
		if !ok {
			return nil, s.gone(q.Method)
		}
		if m.Error != nil {
			closeFDs(m.fds)
			return nil, fmt.Errorf("%w%w", kind(m.Error.Kind), m.Error)
		}
		if result == nil {
			return m.fds, nil
		}
		if err := proto.Unmarshal(m.Result, result); err != nil {
			closeFDs(m.fds)
			return nil, fmt.Errorf("shim %s: decode the answer: %w: %w", q.Method, errdefs.ErrInternal, err)
		}
		return m.fds, nil
	case <-ctx.Done():
		s.forget(q)
		select {
		case m, ok := <-q.reply: // the answer arrived at the same moment
			if ok {
				closeFDs(m.fds)
			}
		default:
		}
		return nil, context.Cause(ctx)
	}
}

func (s *Shim) gone(method string) error {
	return fmt.Errorf("shim %s: %w: the connection to the shim has ended", method, errdefs.ErrUnavailable)
}

// silent carries an error kind without its text: the shim's message is complete.
type silent struct{ error }

func (silent) Error() string   { return "" }
func (s silent) Unwrap() error { return s.error }

func kind(k string) error {
	switch k {
	case proto.KindUnimplemented:
		return silent{errdefs.ErrNotImplemented}
	case proto.KindInvalid:
		return silent{errdefs.ErrInvalidArgument}
	case proto.KindNotFound:
		return silent{errdefs.ErrNotFound}
	case proto.KindConflict:
		return silent{errdefs.ErrConflict}
	case proto.KindRuntime:
		return silent{errdefs.ErrUnknown}
	}
	return silent{errdefs.ErrInternal}
}

// Subscribe calls fn for every journal entry with a number above after: first the
// past ones, then new ones as they come, from one goroutine and in order. Past
// entries carry the current state. A connection has at most one subscription. What has
// arrived since Dial was passed to fn when Subscribe returns.
func (s *Shim) Subscribe(ctx context.Context, after uint64, fn func(proto.Event)) error {
	s.mu.Lock()
	if s.fn != nil {
		s.mu.Unlock()
		return fmt.Errorf("shim subscribe: %w: this connection has a subscriber", errdefs.ErrAlreadyExists)
	}
	early := s.early
	if early != nil && s.ended != nil { // the entries are still in the journal file
		s.mu.Unlock()
		return s.gone(proto.MethodSubscribe)
	}
	var passed chan struct{}
	if early != nil {
		passed = make(chan struct{})
	}
	s.fn, s.early, s.passed = fn, nil, passed
	if early != nil && after > 0 { // the early subscription is for all entries
		s.fn = func(e proto.Event) {
			if e.Seq == 0 || e.Seq > after {
				fn(e)
			}
		}
	}
	s.mu.Unlock()
	var err error
	if early != nil {
		s.wake() // for events that arrived already
		if _, err = s.answer(ctx, early, nil); err == nil {
			select {
			case <-passed:
			case <-s.done:
			case <-ctx.Done():
			}
		}
	} else {
		err = s.call(ctx, proto.MethodSubscribe, &proto.Subscribe{After: after}, nil)
	}
	if err != nil && ctx.Err() == nil {
		s.mu.Lock()
		s.fn = nil
		s.mu.Unlock()
	}
	return err
}

// Heard acknowledges all journal entries up to seq: the caller has handled them, and
// those up to kept are in a journal of its own; see proto.Heard. It never blocks and
// need not be called for each entry.
func (s *Shim) Heard(seq, kept uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended != nil || s.heard != nil && s.heard.Seq >= seq || s.begun && seq == 0 {
		return
	}
	s.begun = true
	s.heard = &proto.Heard{Seq: seq, Kept: kept}
	if !s.saying {
		s.saying = true
		go s.say()
	}
}

// say sends acknowledgements until none is due.
func (s *Shim) say() {
	for {
		s.mu.Lock()
		heard := s.heard
		s.heard = nil
		if heard == nil || s.ended != nil {
			s.saying = false
			s.mu.Unlock()
			return
		}
		s.next++
		m, err := heardMessage(s.next, heard)
		s.mu.Unlock()
		if err == nil {
			_ = s.conn.Send(m) // an ended connection needs no acknowledgement
		}
	}
}

// heardMessage is an acknowledgement. Its answer, which is empty, is ignored, also that
// of a shim that does not know the method.
func heardMessage(id uint64, heard *proto.Heard) (*proto.Message, error) {
	params, err := proto.Marshal(heard)
	return &proto.Message{ID: id, Method: proto.MethodHeard, Params: params}, err
}

// State returns the current state.
func (s *Shim) State(ctx context.Context) (st proto.State, err error) {
	err = s.call(ctx, proto.MethodState, nil, &st)
	return st, err
}

// Start runs the container and returns once its process runs. If the error is a
// *proto.Error of KindRuntime it has the exit code; the shim then exits by itself.
func (s *Shim) Start(ctx context.Context) (st proto.State, err error) {
	err = s.call(ctx, proto.MethodStart, nil, &st)
	return st, err
}

// Stop ends the container for good. It returns once the cgroup is removed and the
// exit recorded.
func (s *Shim) Stop(ctx context.Context, p proto.Stop) (st proto.State, err error) {
	err = s.call(ctx, proto.MethodStop, &p, &st)
	return st, err
}

// Kill sends a signal.
func (s *Shim) Kill(ctx context.Context, p proto.Kill) error {
	return s.call(ctx, proto.MethodKill, &p, nil)
}

// Pause freezes the container.
func (s *Shim) Pause(ctx context.Context) (st proto.State, err error) {
	err = s.call(ctx, proto.MethodPause, nil, &st)
	return st, err
}

// PauseLent freezes the container until Resume, or until this connection ends.
func (s *Shim) PauseLent(ctx context.Context) (st proto.State, err error) {
	err = s.call(ctx, proto.MethodPause, &proto.Pause{Lent: true}, &st)
	return st, err
}

// Resume thaws it.
func (s *Shim) Resume(ctx context.Context) (st proto.State, err error) {
	err = s.call(ctx, proto.MethodResume, nil, &st)
	return st, err
}

// Update changes restart policy, resources or attributes.
func (s *Shim) Update(ctx context.Context, p proto.Update) error {
	return s.call(ctx, proto.MethodUpdate, &p, nil)
}

// Resize sets the terminal's size in characters.
func (s *Shim) Resize(ctx context.Context, height, width uint) error {
	return s.call(ctx, proto.MethodResize, &proto.Resize{Height: height, Width: width}, nil)
}

// Names gives the shim the sockets of the container's name server. The caller
// closes its own copies when Names returns.
func (s *Shim) Names(ctx context.Context, p proto.Names, udp, tcp *os.File) error {
	u, err := descriptor(udp)
	if err != nil {
		return err
	}
	t, err := descriptor(tcp)
	if err != nil {
		return err
	}
	return s.call(ctx, proto.MethodNames, &p, nil, u, t)
}

// Ports changes the targets of the published ports and gives the shim the sockets
// of p.New. The caller closes its own copies when Ports returns.
func (s *Shim) Ports(ctx context.Context, p proto.Ports, sockets ...*os.File) (reply proto.PortsReply, err error) {
	fds := make([]int, len(sockets))
	for i, f := range sockets {
		if fds[i], err = descriptor(f); err != nil {
			return reply, err
		}
	}
	err = s.call(ctx, proto.MethodPorts, &p, &reply, fds...)
	return reply, err
}

// Attach gives the client's connection to the shim, which closes it at the end of
// the container's run. The caller closes its own copy when Attach returns, also on
// an error. A client that is attached before Start gets all output from the first
// byte on.
func (s *Shim) Attach(ctx context.Context, p proto.Attach, client *os.File) error {
	fd, err := descriptor(client)
	if err != nil {
		return err
	}
	return s.call(ctx, proto.MethodAttach, &p, nil, fd)
}

// Hold gives a waiting client and one end of a lease to the shim. The caller closes
// its own copies; see proto.Hold.
func (s *Shim) Hold(ctx context.Context, p proto.Hold, client, lease *os.File) error {
	return s.give(ctx, proto.MethodHold, &p, client, lease)
}

// Follow gives a client that follows the log, with the log's active file, to the
// shim. The caller closes its own copies; see proto.Follow.
func (s *Shim) Follow(ctx context.Context, p proto.Follow, client, log *os.File) error {
	return s.give(ctx, proto.MethodFollow, &p, client, log)
}

func (s *Shim) give(ctx context.Context, method string, params any, files ...*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		var err error
		if fds[i], err = descriptor(f); err != nil {
			return err
		}
	}
	return s.call(ctx, method, params, nil, fds...)
}

// ExecCreate prepares an exec session.
func (s *Shim) ExecCreate(ctx context.Context, p proto.ExecCreate) error {
	return s.call(ctx, proto.MethodExecCreate, &p, nil)
}

// ExecStart runs a session, detached if client is nil. As with Attach, the client's
// connection belongs to the shim. If the program can't be run, the client gets the
// message, and the state has ExitCode 126 or 127; without a client it is the error.
func (s *Shim) ExecStart(ctx context.Context, p proto.ExecStart, client *os.File) (st proto.ExecState, err error) {
	if client == nil {
		err = s.call(ctx, proto.MethodExecStart, &p, &st)
		return st, err
	}
	fd, err := descriptor(client)
	if err != nil {
		return st, err
	}
	err = s.call(ctx, proto.MethodExecStart, &p, &st, fd)
	return st, err
}

// ExecResize sets the size of an exec's terminal in characters.
func (s *Shim) ExecResize(ctx context.Context, exec string, height, width uint) error {
	return s.call(ctx, proto.MethodExecResize, &proto.Resize{Exec: exec, Height: height, Width: width}, nil)
}

// Shutdown ends a shim whose container was never started.
func (s *Shim) Shutdown(ctx context.Context) error {
	return s.call(ctx, proto.MethodShutdown, nil, nil)
}

// Terminal returns the master of a running container's terminal. As long as a
// process holds it, the terminal outlives the shim. ErrConflict: there is none at
// the moment.
func (s *Shim) Terminal(ctx context.Context) (*os.File, error) {
	fds, err := s.callFDs(ctx, proto.MethodTerminal, nil, nil)
	if err != nil {
		return nil, err
	}
	if len(fds) != 1 {
		closeFDs(fds)
		return nil, fmt.Errorf("shim %s: %w: want 1 descriptor, got %d", proto.MethodTerminal, errdefs.ErrInternal, len(fds))
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

// Upgrade makes the shim re-exec another binary. The shim keeps its process, its
// state, this connection and all requests over it. If the binary can't be used or
// refuses the shim's state, the shim continues as before, and the error has the
// reason.
func (s *Shim) Upgrade(ctx context.Context, binary string) (reply proto.HelloReply, err error) {
	err = s.call(ctx, proto.MethodUpgrade, &proto.Upgrade{Binary: binary}, &reply)
	if err == nil {
		s.mu.Lock()
		s.hello.Release, s.hello.Version = reply.Release, reply.Version
		s.mu.Unlock()
	}
	return reply, err
}

// descriptor returns a file's descriptor. Unlike File.Fd it keeps it non-blocking.
func descriptor(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("client's connection: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	n := -1
	if err := raw.Control(func(fd uintptr) { n = int(fd) }); err != nil {
		return -1, fmt.Errorf("client's connection: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	return n, nil
}
