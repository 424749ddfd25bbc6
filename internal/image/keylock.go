package image

import (
	"context"
	"sync"
)

// keyLock is one lock per key, so that two pulls never fetch the same blob or
// unpack the same layer twice. The zero value is ready.
type keyLock struct {
	mu   sync.Mutex
	held map[string]*keyHolder
}

type keyHolder struct {
	free chan struct{} // holds one token while nobody has the key
	refs int
}

// Lock waits for the key or for the context.
func (l *keyLock) Lock(ctx context.Context, key string) error {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]*keyHolder{}
	}
	h := l.held[key]
	if h == nil {
		h = &keyHolder{free: make(chan struct{}, 1)}
		h.free <- struct{}{}
		l.held[key] = h
	}
	h.refs++
	l.mu.Unlock()

	select {
	case <-h.free:
		return nil
	case <-ctx.Done():
		l.drop(key)
		return ctx.Err()
	}
}

// Unlock gives the key back; only its holder may call it.
func (l *keyLock) Unlock(key string) {
	l.mu.Lock()
	h := l.held[key]
	l.mu.Unlock()
	h.free <- struct{}{}
	l.drop(key)
}

func (l *keyLock) drop(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.held[key]
	if h.refs--; h.refs == 0 {
		delete(l.held, key)
	}
}
