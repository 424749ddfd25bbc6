// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"sync"
)

// keyLock is one lock per key, so that two pulls never download the same blob
// or unpack the same layer twice. The zero value is ready to use.
type keyLock struct {
	mu     sync.Mutex
	locked map[string]*keyHolder
}

type keyHolder struct {
	free chan struct{} // holds one token while the key is unlocked
	refs int
}

// Lock waits for the key or for the context.
func (l *keyLock) Lock(ctx context.Context, key string) error {
	l.mu.Lock()
	if l.locked == nil {
		l.locked = map[string]*keyHolder{}
	}
	h := l.locked[key]
	if h == nil {
		h = &keyHolder{free: make(chan struct{}, 1)}
		h.free <- struct{}{}
		l.locked[key] = h
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

// Unlock releases the key. Only its holder may call it.
func (l *keyLock) Unlock(key string) {
	l.mu.Lock()
	h := l.locked[key]
	l.mu.Unlock()
	h.free <- struct{}{}
	l.drop(key)
}

func (l *keyLock) drop(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.locked[key]
	if h.refs--; h.refs == 0 {
		delete(l.locked, key)
	}
}
