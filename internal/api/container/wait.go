// SPDX-License-Identifier: Apache-2.0

package container

import (
	"net/http"

	"github.com/moby/moby/api/types/container"

	"holdfast/internal/api/wire"
	"holdfast/internal/engine"
)

// wait sends the head as soon as the wait is registered, and the answer when
// there is one. Clients start a container only after the head, because then its
// end can't be missed.
func (h *handlers) wait(w http.ResponseWriter, r *wire.Request) error {
	condition, err := waitCondition(r)
	if err != nil {
		return err
	}
	if hj := wire.NewHijacker(w, r); !r.Version.Before(34) && hj.Hands() {
		return h.backend.ContainerWaitHeld(r.Context(), r.Name(), condition, func() (*engine.Client, []byte, error) {
			return taken(hj.TakeOver("application/json", true))
		})
	}
	answer, err := h.backend.ContainerWait(r.Context(), r.Name(), condition)
	if err != nil {
		return err
	}
	if r.Version.Before(30) {
		res, ok := <-answer
		if !ok {
			return r.Context().Err()
		}
		return wire.WriteJSON(w, http.StatusOK, res)
	}
	s := wire.NewStream(w, "application/json")
	if err := s.Open(); err != nil {
		return err
	}
	select {
	case res, ok := <-answer:
		if !ok {
			return r.Context().Err()
		}
		// Before 1.34 an answer had no error field: an error was reported by an
		// empty answer.
		if res.Error != nil && condition == container.WaitConditionRemoved && r.Version.Before(34) {
			return nil
		}
		return s.Send(res)
	case <-r.Context().Done():
		return r.Context().Err()
	}
}

func waitCondition(r *wire.Request) (container.WaitCondition, error) {
	c := container.WaitCondition(r.Query.Get("condition"))
	if c == "" || r.Version.Before(30) {
		return container.WaitConditionNotRunning, nil
	}
	switch c {
	case container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved:
		return c, nil
	}
	return "", wire.Invalid("invalid condition: %q: want not-running, next-exit or removed", string(c))
}
