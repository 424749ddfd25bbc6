// SPDX-License-Identifier: Apache-2.0

package stream

// escape finds the detach keys in a client's input. Keys that may yet become the
// whole sequence are held back. Without keys everything passes.
type escape struct {
	keys []byte
	pos  int // how many keys are held back
}

// filter returns the bytes to pass on, and whether the sequence was completed. The
// result may alias p.
func (e *escape) filter(p []byte) (clean []byte, detached bool) {
	if len(e.keys) == 0 {
		return p, false
	}
	e.pos = min(max(e.pos, 0), len(e.keys)-1)
	clean = make([]byte, 0, len(p)+e.pos)
	for _, b := range p {
		if b != e.keys[e.pos] {
			clean = append(clean, e.keys[:e.pos]...)
			e.pos = 0
			if b != e.keys[0] {
				clean = append(clean, b)
				continue
			}
		}
		if e.pos++; e.pos == len(e.keys) {
			e.pos = 0
			return clean, true
		}
	}
	return clean, false
}

// held returns the keys that filter holds back.
func (e *escape) held() []byte { return e.keys[:min(max(e.pos, 0), len(e.keys))] }
