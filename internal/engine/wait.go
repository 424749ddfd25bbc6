package engine

import (
	"context"
	"encoding/json"
	"slices"

	moby "github.com/moby/moby/api/types/container"

	"holdfast/internal/container"
)

// ContainerWait answers on the channel, once, when the condition has come. The
// channel never answers if the context ends first.
func (e *Engine) ContainerWait(ctx context.Context, ref string, on moby.WaitCondition) (<-chan moby.WaitResponse, error) {
	_, w, err := e.wait(ctx, ref, on)
	if err != nil {
		return nil, err
	}
	return w.ch, nil
}

// ContainerWaitHeld is ContainerWait for a client whose connection is a socket.
// As soon as the container has a shim, that one holds a copy of it and answers
// should this daemon die. Hijack is called once the wait is registered. It gives
// the connection and the response's head, which is not written yet and
// announces a chunked body; the connection ends with the answer.
func (e *Engine) ContainerWaitHeld(ctx context.Context, ref string, on moby.WaitCondition, hijack func() (*Client, []byte, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a, w, err := e.wait(ctx, ref, on)
	if err != nil {
		return err
	}
	c, head, err := hijack()
	if err != nil {
		return err
	}
	h := &heldWait{on: w.on, client: c.File, head: head}
	defer h.close()
	go func() {
		// Nothing more comes from this client but its end.
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
		if i := slices.IndexFunc(a.waiters, func(o waiter) bool { return o.ch == w.ch }); i >= 0 {
			a.waiters[i].held = h
			shim <- a.shim
			return
		}
		shim <- nil // it has its answer
	}) {
		if s := <-shim; s != nil {
			h.give(s)
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
		return nil // there is nobody to be told
	}
}

// wait registers a waiter, or answers at once.
func (e *Engine) wait(ctx context.Context, ref string, on moby.WaitCondition) (*actor, waiter, error) {
	switch on {
	case "":
		on = moby.WaitConditionNotRunning
	case moby.WaitConditionNotRunning, moby.WaitConditionNextExit, moby.WaitConditionRemoved:
	default:
		return nil, waiter{}, invalid("invalid condition: %q: want not-running, next-exit or removed", on)
	}
	a, err := e.find(ctx, ref)
	if err != nil {
		return nil, waiter{}, err
	}
	w := waiter{on: on, ch: make(chan moby.WaitResponse, 1), ctx: ctx}
	there := a.post(func() {
		if ctx.Err() != nil {
			return
		}
		if on == moby.WaitConditionNotRunning {
			switch a.state {
			case container.Created, container.Exited, container.Dead:
				w.ch <- waitResponse(a.exit())
				return
			}
		}
		if a.gone() {
			w.ch <- waitResponse(a.exit())
			return
		}
		a.waiters = slices.DeleteFunc(a.waiters, func(w waiter) bool { return w.ctx.Err() != nil })
		a.waiters = append(a.waiters, w)
	})
	if !there {
		w.ch <- waitResponse(a.exit())
	}
	return a, w, nil
}

// giveWaits gives the clients that wait to a new shim. It is called outside of
// the loop.
func (a *actor) giveWaits(shim Shim) {
	var held []*heldWait
	a.await(func() {
		for _, w := range a.waiters {
			if w.held != nil && w.ctx.Err() == nil {
				held = append(held, w.held)
			}
		}
	})
	for _, h := range held {
		h.give(shim)
	}
}
