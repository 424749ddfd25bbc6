// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
)

// works checks that the daemon works: the main loop responds, unless it hands
// over or stops, and the engine answers, for which it needs its locks. A daemon
// for which this fails is useless, and its containers do not notice when
// another one replaces it.
func (d *daemon) works(ctx context.Context) error {
	turn := make(chan service, 1)
	select {
	case d.tasks <- func(context.Context) { turn <- d.service }:
	case <-ctx.Done():
		if d.away.Load() {
			return nil
		}
		return errors.New("the main loop does not respond")
	}
	s := <-turn
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		s.Running()
		s.Busy()
	}()
	select {
	case <-answered:
		return nil
	case <-ctx.Done():
		return errors.New("the engine does not answer")
	}
}
