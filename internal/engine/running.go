package engine

// Running is how many containers have a process, or may have one.
func (e *Engine) Running() int {
	n := 0
	for _, a := range e.index.all() {
		if a.view.Load().state.Alive() {
			n++
		}
	}
	return n
}
