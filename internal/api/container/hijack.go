// SPDX-License-Identifier: Apache-2.0

package container

import (
	"holdfast/internal/api/wire"
	"holdfast/internal/beside"
	"holdfast/internal/engine"
)

// taken is the result of Hijacker.TakeOver for the engine.
func taken(c *beside.Client, head []byte, err error) (*engine.Client, []byte, error) {
	return (*engine.Client)(c), head, err
}

// hijack is Hijacker.Hijack for the engine.
func hijack(h *wire.Hijacker) func(raw bool) (*engine.Client, error) {
	return func(raw bool) (*engine.Client, error) {
		c, err := h.Hijack(raw)
		return (*engine.Client)(c), err
	}
}
