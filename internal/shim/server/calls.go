// SPDX-License-Identifier: Apache-2.0

package server

import (
	"os"

	"holdfast/internal/shim/descriptor"
	"holdfast/internal/shim/proto"
	"holdfast/internal/shim/stream"
)

// request is a request that is being answered.
type request struct {
	*proto.Message
	conn *conn
	shim *Shim
	fds  []int // its descriptors that the method has not taken

	// then is called once the answer is sent, or can't be; nil for nothing.
	then func()
	// answered: the method has sent the answer itself.
	answered bool
	// later: the answer comes later, from another goroutine.
	later bool
}

// methods are those that this shim knows. A method returns the result of a request,
// or nil for none. An array of plain functions takes no memory of the heap.
var methods = [...]struct {
	name string
	call func(*request) (any, error)
}{
	{proto.MethodHello, callHello},
	{proto.MethodSubscribe, callSubscribe},
	{proto.MethodHeard, callHeard},
	{proto.MethodState, callState},
	{proto.MethodStart, callStart},
	{proto.MethodStop, callStop},
	{proto.MethodKill, callKill},
	{proto.MethodPause, callPause},
	{proto.MethodResume, callResume},
	{proto.MethodUpdate, callUpdate},
	{proto.MethodResize, callResize},
	{proto.MethodTerminal, callTerminal},
	{proto.MethodNames, callNames},
	{proto.MethodPorts, callPorts},
	{proto.MethodAttach, callAttach},
	{proto.MethodHold, callHold},
	{proto.MethodFollow, callFollow},
	{proto.MethodExecCreate, callExecCreate},
	{proto.MethodExecStart, callExecStart},
	{proto.MethodExecResize, callExecResize},
	{proto.MethodUpgrade, callUpgrade},
	{proto.MethodShutdown, callShutdown},
}

// handle answers a request. It reports false if the answer comes later, from
// another goroutine. Descriptors that the method doesn't take are closed.
func (c *conn) handle(m *proto.Message, fds []int) bool {
	r := &request{Message: m, conn: c, shim: c.srv.shim, fds: fds}
	result, err := r.call()
	descriptor.CloseAll(r.fds)
	switch {
	case err != nil:
		c.answer(m.ID, nil, err)
	case r.later:
		return false
	case !r.answered:
		c.answerThen(m.ID, result, nil, r.then)
	}
	return true
}

func (r *request) call() (any, error) {
	for i := range methods {
		if methods[i].name == r.Method {
			return methods[i].call(r)
		}
	}
	return nil, proto.Errorf(proto.KindUnimplemented, "this shim (protocol %d) knows no method %q", proto.Version, r.Method)
}

// params decodes the request's parameters, if it has any.
func (r *request) params(v any) error {
	if len(r.Params) == 0 {
		return nil
	}
	if err := proto.Unmarshal(r.Params, v); err != nil {
		return invalid("%s: %v", r.Method, err)
	}
	return nil
}

// want returns an error if the request does not have n descriptors.
func (r *request) want(n int) error {
	switch {
	case len(r.fds) == n:
		return nil
	case n == 1:
		return invalid("%s: want 1 descriptor, %d came", r.Method, len(r.fds))
	}
	return invalid("%s: want %d descriptors, %d came", r.Method, n, len(r.fds))
}

// take takes the next descriptor.
func (r *request) take() int {
	fd := r.fds[0]
	r.fds = r.fds[1:]
	return fd
}

// takeSocket makes a client's socket of the next descriptor.
func (r *request) takeSocket() (*stream.Socket, error) {
	sock, err := stream.NewSocket(r.take())
	if err != nil {
		return nil, invalid("%v", err)
	}
	return sock, nil
}

// takePair takes a client's socket and a file, the two descriptors of the request.
func (r *request) takePair() (*stream.Socket, int, error) {
	if err := r.want(2); err != nil {
		return nil, -1, err
	}
	sock, err := r.takeSocket()
	if err != nil {
		return nil, -1, err
	}
	return sock, r.take(), nil
}

func (s *Shim) hello() *proto.HelloReply {
	return &proto.HelloReply{Version: proto.Version, Release: s.server.release, Pid: os.Getpid(), State: s.rec.snapshot(), Names: s.names.serves(), Chunks: true}
}

func callHello(r *request) (any, error) {
	var p proto.Hello
	if err := r.params(&p); err != nil {
		return nil, err
	}
	r.conn.daemon.Store(p.Daemon != "")
	return r.shim.hello(), nil
}

func callSubscribe(r *request) (any, error) {
	var p proto.Subscribe
	if err := r.params(&p); err != nil {
		return nil, err
	}
	r.answered = true // before the entries that follow it
	return nil, r.shim.rec.subscribe(r.conn, &proto.Message{ID: r.ID}, p.After)
}

func callHeard(r *request) (any, error) {
	var p proto.Heard
	if err := r.params(&p); err != nil {
		return nil, err
	}
	r.conn.ack(p.Seq) // first: whoever waits for it does not wait for the journal
	if p.Kept > 0 {
		r.shim.rec.discard(p.Kept)
	}
	return nil, nil
}

func callState(r *request) (any, error) {
	st := r.shim.rec.snapshot()
	return &st, nil
}

func callStart(r *request) (any, error) {
	st, err := r.shim.life.start()
	return &st, err
}

func callStop(r *request) (any, error) {
	var p proto.Stop
	if err := r.params(&p); err != nil {
		return nil, err
	}
	r.later = true
	return nil, r.shim.stops.begin(r.conn, r.ID, p)
}

func callKill(r *request) (any, error) {
	var p proto.Kill
	if err := r.params(&p); err != nil {
		return nil, err
	}
	return nil, r.shim.stops.kill(p)
}

func callPause(r *request) (any, error) {
	var p proto.Pause
	if err := r.params(&p); err != nil {
		return nil, err
	}
	var lender *conn
	if p.Lent {
		lender = r.conn
	}
	st, err := r.shim.verbs.pause(lender)
	if err == nil {
		r.shim.stops.watchDoomed(r.shim.life.running())
	}
	return &st, err
}

func callResume(r *request) (any, error) {
	st, err := r.shim.verbs.resume()
	return &st, err
}

func callUpdate(r *request) (any, error) {
	var p proto.Update
	if err := r.params(&p); err != nil {
		return nil, err
	}
	return nil, r.shim.update(p)
}

func callResize(r *request) (any, error) {
	var p proto.Resize
	if err := r.params(&p); err != nil {
		return nil, err
	}
	return nil, r.shim.resize(p)
}

func callTerminal(r *request) (any, error) {
	fd, err := r.shim.life.terminal()
	if err != nil {
		return nil, err
	}
	r.answered = true
	r.conn.post(outgoing{Message: &proto.Message{ID: r.ID, FDs: 1}, fd: fd})
	return nil, nil
}

func callNames(r *request) (any, error) {
	var p proto.Names
	if err := r.params(&p); err != nil {
		return nil, err
	}
	if len(r.fds) != 2 || p.View == "" {
		return nil, invalid("%s: want the view's path and 2 descriptors, %d came", r.Method, len(r.fds))
	}
	udp, tcp := r.take(), r.take()
	return nil, r.shim.names.serve(p.View, udp, tcp)
}

func callPorts(r *request) (any, error) {
	var p proto.Ports
	if err := r.params(&p); err != nil {
		return nil, err
	}
	if len(r.fds) != len(p.New) {
		return nil, invalid("%s: want %d descriptors, %d came", r.Method, len(p.New), len(r.fds))
	}
	added := r.fds
	r.fds = nil
	reply, err := r.shim.setPorts(p, added)
	return &reply, err
}

// callAttach attaches a client. Bytes flow only after the answer was sent: a daemon
// that gets no answer gives the same client to the next shim, so nothing may have
// been read or written yet.
func callAttach(r *request) (any, error) {
	var p proto.Attach
	if err := r.params(&p); err != nil {
		return nil, err
	}
	if err := r.want(1); err != nil {
		return nil, err
	}
	sock, err := r.takeSocket()
	if err != nil {
		return nil, err
	}
	r.then, err = r.shim.attach(p, sock)
	return nil, err
}

func callHold(r *request) (any, error) {
	var p proto.Hold
	if err := r.params(&p); err != nil {
		return nil, err
	}
	sock, lease, err := r.takePair()
	if err != nil {
		return nil, err
	}
	return nil, r.shim.acceptWaiter(p, sock, lease)
}

func callFollow(r *request) (any, error) {
	var p proto.Follow
	if err := r.params(&p); err != nil {
		return nil, err
	}
	sock, log, err := r.takePair()
	if err != nil {
		return nil, err
	}
	return nil, r.shim.followLog(p, sock, log)
}

func callExecCreate(r *request) (any, error) {
	var p proto.ExecCreate
	if err := r.params(&p); err != nil {
		return nil, err
	}
	return nil, r.shim.execCreate(p)
}

func callExecStart(r *request) (any, error) {
	var p proto.ExecStart
	if err := r.params(&p); err != nil {
		return nil, err
	}
	var sock *stream.Socket
	if len(r.fds) > 0 {
		var err error
		if sock, err = r.takeSocket(); err != nil {
			return nil, err
		}
	}
	st, err := r.shim.execStart(p, sock)
	return &st, err
}

func callExecResize(r *request) (any, error) {
	var p proto.Resize
	if err := r.params(&p); err != nil {
		return nil, err
	}
	if p.Exec == "" {
		return nil, invalid("%s: exec is missing", r.Method)
	}
	return nil, r.shim.resize(p)
}

func callUpgrade(r *request) (any, error) {
	var p proto.Upgrade
	if err := r.params(&p); err != nil {
		return nil, err
	}
	r.later = true
	return nil, r.shim.upgrade(r.conn, r.ID, p)
}

func callShutdown(r *request) (any, error) { return nil, r.shim.life.shutdown() }
