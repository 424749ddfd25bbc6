package wire

import "context"

type bridgesKey struct{}

// WithBridges makes connections known that are taken over from HTTP and that
// this process goes on copying: begin is called for each, and what it returns
// when the connection has ended.
func WithBridges(ctx context.Context, begin func() (end func())) context.Context {
	return context.WithValue(ctx, bridgesKey{}, begin)
}

// BeginBridge says that a connection is copied from now on until end is called.
func BeginBridge(ctx context.Context) (end func()) {
	if begin, ok := ctx.Value(bridgesKey{}).(func() func()); ok {
		return begin()
	}
	return func() {}
}
