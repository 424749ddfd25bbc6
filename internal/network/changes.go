// SPDX-License-Identifier: Apache-2.0

package network

import (
	"sync"

	"holdfast/internal/network/bridge"
)

// changes are what the kernel has notified the engine of and what was not repaired
// yet.
type changes struct {
	mu         sync.Mutex // guards all below
	rules      bool       // the table was changed
	interfaces bool       // a bridge or an address was changed
	// intact holds the interfaces, by index, that are up and on a bridge.
	intact map[int]bool
	// broken holds the interfaces, by index, that were intact and no longer are. An
	// interface that is gone altogether is not among them: it went with its
	// container.
	broken map[int]bool
}

// notePorts notes the interfaces that are intact at first.
func (c *changes) notePorts(ports map[string]bridge.Port) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.init()
	for name, p := range ports {
		if ourVeth.MatchString(name) && p.Bridge != "" && p.Up {
			c.intact[p.Index] = true
		}
	}
}

// init makes the maps. The lock is held.
func (c *changes) init() {
	if c.intact == nil {
		c.intact, c.broken = map[int]bool{}, map[int]bool{}
	}
}

// noteRules notes that the table was changed.
func (c *changes) noteRules() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rules = true
}

// noteInterfaces notes that a bridge or an address was changed.
func (c *changes) noteInterfaces() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.interfaces = true
}

// noteVeth notes a change of the host's end of an endpoint. It reports whether the
// interface was intact and no longer is.
func (c *changes) noteVeth(e bridge.Event) (broke bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.init()
	intact := e.Up && e.Port
	switch {
	case e.Gone:
		delete(c.broken, e.Index)
		delete(c.intact, e.Index)
		return false
	case intact:
		delete(c.broken, e.Index)
		c.intact[e.Index] = true
		return false
	case c.intact[e.Index]:
		c.broken[e.Index] = true
		return true
	}
	return false
}

// take returns what was changed since the last call.
func (c *changes) take() (rules, interfaces bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rules, interfaces = c.rules, c.interfaces || len(c.broken) > 0
	c.rules, c.interfaces = false, false
	clear(c.broken)
	return rules, interfaces
}
