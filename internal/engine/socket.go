package engine

import (
	"os"
	"strings"

	"github.com/moby/moby/api/types/mount"

	"holdfast/internal/engine/rebind"
)

// rebindSockets gives a running container the API's sockets that it has bound,
// where this daemon had to make new ones. What sees the socket in a folder that
// it has bound sees the new one anyway.
func (a *actor) rebindSockets() {
	for _, m := range a.mounts {
		if m.Type != mount.TypeBind || !a.e.isSocket(m.Source) {
			continue
		}
		changed, err := a.rebindSocket(m)
		switch {
		case err != nil:
			a.log.Warn("the container has the API's socket of an earlier daemon, where none answers any more: restart it", "destination", m.Destination, "error", err)
		case changed:
			a.log.Info("the container was given the API's new socket", "destination", m.Destination)
		}
	}
}

func (a *actor) rebindSocket(m mountPoint) (changed bool, err error) {
	namespace, err := rebind.Namespace(a.rec.Pid)
	if err != nil {
		return false, err
	}
	defer namespace.Close()
	if !alive(a.rec) {
		return false, nil // and the namespace may be anybody's
	}
	return rebind.Socket(namespace, m.Source, m.Destination, !m.RW)
}

// isSocket reports whether the API is served on the socket at a path.
func (e *Engine) isSocket(path string) bool {
	there, err := os.Stat(path)
	if err != nil {
		return false
	}
	for _, address := range e.config.Load().Addresses() {
		socket, unix := strings.CutPrefix(address, "unix://")
		if !unix {
			continue
		}
		if st, err := os.Stat(socket); err == nil && os.SameFile(st, there) {
			return true
		}
	}
	return false
}
