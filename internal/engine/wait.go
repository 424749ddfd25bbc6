// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"encoding/json"

	moby "github.com/moby/moby/api/types/container"

	"holdfast/internal/container"
	"holdfast/internal/errs"
)

// waits serves clients that wait for the end of a container.
type waits struct{ index *index }

// ContainerWait sends one answer on the channel when the condition is met. It sends
// none if the context ends first.
func (ws *waits) ContainerWait(ctx context.Context, ref string, on moby.WaitCondition) (<-chan moby.WaitResponse, error) {
	_, w, err := ws.register(ctx, ref, on)
	if err != nil {
		return nil, err
	}
	return w.ch, nil
}

// ContainerWaitHeld is ContainerWait for a client whose connection is a socket. As
// soon as the container has a shim, the shim gets a copy of the socket, and answers
// the client if this daemon dies. hijack is called once the wait is registered. It
// returns the connection and the response's head, which it has not written and
// which announces a chunked body. The connection is closed after the answer.
func (ws *waits) ContainerWaitHeld(ctx context.Context, ref string, on moby.WaitCondition, hijack func() (*Client, []byte, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a, w, err := ws.register(ctx, ref, on)
	if err != nil {
		return err
	}
	c, head, err := hijack()
	if err != nil {
		return err
	}
	h := &waitClient{on: w.on, client: c.File, head: head}
	defer h.close()
	go func() {
		// The client sends nothing more; the read ends when it closes the connection.
		defer cancel()
		defer h.leave()
		buf := make([]byte, 64)
		for {
			if n, err := c.File.Read(buf); n == 0 || err != nil {
				return
			}
		}
	}()
	shim := make(chan Shim, 1)
	if a.post(func() {
		if a.waiters.setClient(w, h) {
			shim <- a.shim
			return
		}
		shim <- nil // the wait is over already
	}) {
		if s := <-shim; s != nil {
			h.handOver(s)
		}
	}
	if err := h.open(); err != nil {
		return nil // the client has gone
	}
	select {
	case res := <-w.ch:
		body, err := json.Marshal(res)
		if err != nil {
			return err
		}
		h.answer(append(body, '\n'))
		return nil
	case <-ctx.Done():
		return nil // the client has gone, or the daemon ends
	}
}

// register registers a waiter, or answers it if the condition is met already.
func (ws *waits) register(ctx context.Context, ref string, on moby.WaitCondition) (*actor, waiter, error) {
	switch on {
	case "":
		on = moby.WaitConditionNotRunning
	case moby.WaitConditionNotRunning, moby.WaitConditionNextExit, moby.WaitConditionRemoved:
	default:
		return nil, waiter{}, errs.Invalid("invalid condition: %q: want not-running, next-exit or removed", on)
	}
	a, err := ws.index.findForChange(ctx, ref)
	if err != nil {
		return nil, waiter{}, err
	}
	w := waiter{on: on, ch: make(chan moby.WaitResponse, 1), ctx: ctx}
	posted := a.post(func() {
		if ctx.Err() != nil {
			return
		}
		if on == moby.WaitConditionNotRunning {
			switch a.phase.State {
			case container.Created, container.Exited, container.Dead:
				w.ch <- waitResponse(a.exit())
				return
			}
		}
		if a.removed() {
			w.ch <- waitResponse(a.exit())
			return
		}
		a.waiters.add(w)
	})
	if !posted {
		w.ch <- waitResponse(a.exit())
	}
	return a, w, nil
}

// handOverWaits hands the waiting clients to a new shim. It must not be called in the
// loop.
func (a *actor) handOverWaits(shim Shim) {
	var clients []*waitClient
	a.await(func() { clients = a.waiters.clients() })
	for _, h := range clients {
		h.handOver(shim)
	}
}
