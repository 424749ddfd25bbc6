// SPDX-License-Identifier: Apache-2.0

package network

import (
	"slices"
	"sync"
)

// troubles records, as messages for the user, what running containers have lost
// that could not be repaired.
type troubles struct {
	mu sync.Mutex
	of map[string][]string // by container
}

// add records a message once.
func (t *troubles) add(container, message string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of == nil {
		t.of = map[string][]string{}
	}
	if !slices.Contains(t.of[container], message) {
		t.of[container] = append(t.of[container], message)
	}
}

// list returns the messages about a container.
func (t *troubles) list(container string) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.of[container])
}

// forget drops the messages about a container.
func (t *troubles) forget(container string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.of, container)
}

// Troubles returns what of a running container's network could not be repaired,
// as messages for the user. It is empty if nothing is wrong.
func (m *Manager) Troubles(container string) []string { return m.troubles.list(container) }
