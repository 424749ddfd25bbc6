// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"slices"

	moby "github.com/moby/moby/api/types/container"

	"holdfast/internal/shim/proto"
)

// waiter is a request that waits for the end of a run, or for the removal.
type waiter struct {
	on  moby.WaitCondition
	ch  chan moby.WaitResponse // buffered
	ctx context.Context        // of the request
	// client is set if a shim can answer the client; nil otherwise.
	client *waitClient
}

// waiters are the waiting requests of a container. Only the container's loop accesses
// them.
type waiters struct{ list []waiter }

// add adds a request, and drops those whose client has gone.
func (ws *waiters) add(w waiter) {
	ws.list = slices.DeleteFunc(ws.list, func(w waiter) bool { return w.ctx.Err() != nil })
	ws.list = append(ws.list, w)
}

// answer answers the requests that meet a condition, with the exit code of a record.
func (ws *waiters) answer(rec proto.State, meets func(on moby.WaitCondition) bool) {
	ws.list = slices.DeleteFunc(ws.list, func(w waiter) bool {
		if !meets(w.on) {
			return false
		}
		w.ch <- waitResponse(rec)
		return true
	})
}

// ended answers the requests that wait for the end of a run.
func (ws *waiters) ended(rec proto.State) {
	ws.answer(rec, func(on moby.WaitCondition) bool { return on != moby.WaitConditionRemoved })
}

// notRunning answers the requests that wait until the container does not run, after a
// start that has failed.
func (ws *waiters) notRunning(rec proto.State) {
	ws.answer(rec, func(on moby.WaitCondition) bool { return on == moby.WaitConditionNotRunning })
}

// removed answers all requests, when the container is removed.
func (ws *waiters) removed(rec proto.State) {
	ws.answer(rec, func(moby.WaitCondition) bool { return true })
}

// setClient sets the client of a request, so that shims can answer it. It returns
// false if the request has been answered.
func (ws *waiters) setClient(w waiter, c *waitClient) bool {
	i := slices.IndexFunc(ws.list, func(o waiter) bool { return o.ch == w.ch })
	if i < 0 {
		return false
	}
	ws.list[i].client = c
	return true
}

// clients returns the clients that a shim can answer.
func (ws *waiters) clients() []*waitClient {
	var clients []*waitClient
	for _, w := range ws.list {
		if w.client != nil && w.ctx.Err() == nil {
			clients = append(clients, w.client)
		}
	}
	return clients
}

// waitResponse contains the exit code. The API's Error is for a wait that failed, not
// for a container that did.
func waitResponse(rec proto.State) moby.WaitResponse {
	return moby.WaitResponse{StatusCode: int64(rec.ExitCode)}
}
