package engine

import (
	"context"
	"slices"

	moby "github.com/moby/moby/api/types/container"

	"holdfast/internal/container"
)

// ContainerWait answers on the channel, once, when the condition has come. The
// channel never answers if the context ends first.
func (e *Engine) ContainerWait(ctx context.Context, ref string, on moby.WaitCondition) (<-chan moby.WaitResponse, error) {
	switch on {
	case "":
		on = moby.WaitConditionNotRunning
	case moby.WaitConditionNotRunning, moby.WaitConditionNextExit, moby.WaitConditionRemoved:
	default:
		return nil, invalid("invalid condition: %q: want not-running, next-exit or removed", on)
	}
	a, err := e.find(ctx, ref)
	if err != nil {
		return nil, err
	}
	ch := make(chan moby.WaitResponse, 1)
	there := a.post(func() {
		if ctx.Err() != nil {
			return
		}
		if on == moby.WaitConditionNotRunning {
			switch a.state {
			case container.Created, container.Exited, container.Dead:
				ch <- waitResponse(a.exit())
				return
			}
		}
		if a.gone() {
			ch <- waitResponse(a.exit())
			return
		}
		a.waiters = slices.DeleteFunc(a.waiters, func(w waiter) bool { return w.ctx.Err() != nil })
		a.waiters = append(a.waiters, waiter{on, ch, ctx})
	})
	if !there {
		ch <- waitResponse(a.exit())
	}
	return ch, nil
}
