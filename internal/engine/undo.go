// SPDX-License-Identifier: Apache-2.0

package engine

// undo is a stack of functions that undo the steps of an operation. rollBack calls
// them in reverse order. commit discards them once the operation has succeeded.
type undo struct{ steps []func() }

func (u *undo) add(step func()) { u.steps = append(u.steps, step) }

func (u *undo) commit() { u.steps = nil }

func (u *undo) rollBack() {
	for i := len(u.steps) - 1; i >= 0; i-- {
		u.steps[i]()
	}
	u.steps = nil
}
