package server

import (
	"os"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/names"
)

// serveNames takes over the sockets of the container's name server. Ones from
// before are closed: what leads to them was replaced.
func (s *Shim) serveNames(view string, udp, tcp int) {
	for _, fd := range []int{udp, tcp} {
		if err := unix.SetNonblock(fd, true); err != nil {
			logf("name server's socket: %v", err)
		}
	}
	files := [2]*os.File{os.NewFile(uintptr(udp), "names udp"), os.NewFile(uintptr(tcp), "names tcp")}
	n := names.New(view, files[0], files[1])
	s.mu.Lock()
	old := s.names
	s.names, s.namesView, s.namesFiles = n, view, files
	s.mu.Unlock()
	if old != nil {
		old.Close()
	}
	go n.Serve()
}

// servesNames reports whether the container has a name server here.
func (s *Shim) servesNames() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.names != nil
}
