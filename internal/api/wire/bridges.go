// SPDX-License-Identifier: Apache-2.0

package wire

import "context"

type bridgesKey struct{}

// WithBridges registers a callback for connections that were taken over from
// HTTP and that this process still copies. begin is called for each; the
// function that it returns is called when the connection has ended.
func WithBridges(ctx context.Context, begin func() (end func())) context.Context {
	return context.WithValue(ctx, bridgesKey{}, begin)
}

// BeginBridge reports that a connection is copied until end is called.
func BeginBridge(ctx context.Context) (end func()) {
	if begin, ok := ctx.Value(bridgesKey{}).(func() func()); ok {
		return begin()
	}
	return func() {}
}
