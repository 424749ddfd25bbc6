package engine

// undo is a stack of what takes back the steps of an operation. fail runs it
// in reverse order; keep forgets it once the operation has succeeded.
type undo struct{ steps []func() }

func (u *undo) add(step func()) { u.steps = append(u.steps, step) }

func (u *undo) keep() { u.steps = nil }

func (u *undo) fail() {
	for i := len(u.steps) - 1; i >= 0; i-- {
		u.steps[i]()
	}
	u.steps = nil
}
