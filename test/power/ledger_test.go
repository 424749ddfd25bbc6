// SPDX-License-Identifier: Apache-2.0

package power

import (
	"slices"
	"sync"
)

// ledger is what clients know: each property that an operation has set, with the
// position of the disk's log when it was asked for and when it was answered. One
// property is set by one client at a time. The value "" stands for an object that
// does not exist.
type ledger struct {
	position func() int

	mu         sync.Mutex
	properties map[string][]setting
}

// setting is a value of a property.
type setting struct {
	Value string
	Asked int
	// Answered is -1 as long as nobody was told of it.
	Answered int
}

// anything is the value of a property that clients know nothing of.
const anything = "*"

func newLedger(position func() int) *ledger {
	return &ledger{position: position, properties: map[string][]setting{}}
}

// operation is one request of a client.
type operation struct {
	l     *ledger
	asked int
	sets  []string // properties
}

// ask begins an operation, which sets properties to values, given in turns.
func (l *ledger) ask(sets ...string) *operation {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := &operation{l: l, asked: l.position()}
	for i := 0; i < len(sets); i += 2 {
		o.set(sets[i], sets[i+1])
	}
	return o
}

func (o *operation) set(property, value string) {
	o.sets = append(o.sets, property)
	o.l.properties[property] = append(o.l.properties[property], setting{value, o.asked, -1})
}

// answered ends an operation that succeeded, with properties that the answer
// told.
func (o *operation) answered(told ...string) {
	o.l.mu.Lock()
	defer o.l.mu.Unlock()
	for i := 0; i < len(told); i += 2 {
		o.set(told[i], told[i+1])
	}
	at := o.l.position()
	for _, property := range o.sets {
		history := o.l.properties[property]
		history[len(history)-1].Answered = at
	}
}

// answers returns the positions at which operations were answered, in order.
func (l *ledger) answers() []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []int
	for _, history := range l.properties {
		for _, s := range history {
			if s.Answered >= 0 {
				out = append(out, s.Answered)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// expectation is what each property may be. A property that is not in it does not
// exist.
type expectation map[string][]string

// at returns what may be found when the power was lost after n requests: the last
// value that was answered by then, and those that were asked for since.
func (l *ledger) at(n int) expectation {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := expectation{}
	for property, history := range l.properties {
		allowed := []string{""}
		for _, s := range history {
			switch {
			case s.Answered >= 0 && s.Answered <= n:
				allowed = []string{s.Value}
			case s.Asked <= n:
				allowed = append(allowed, s.Value)
			}
		}
		if !slices.Equal(allowed, []string{""}) {
			out[property] = allowed
		}
	}
	return out
}

// allows reports whether a property may have a value.
func (e expectation) allows(property, value string) bool {
	allowed := e[property]
	if allowed == nil {
		return value == ""
	}
	return slices.Contains(allowed, value) || slices.Contains(allowed, anything) && value != ""
}

// must returns the value that a property must have.
func (e expectation) must(property string) (value string, sure bool) {
	if a := e[property]; len(a) == 1 && a[0] != anything {
		return a[0], true
	}
	return "", e[property] == nil
}
