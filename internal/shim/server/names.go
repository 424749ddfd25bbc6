// SPDX-License-Identifier: Apache-2.0

package server

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/descriptor"
	"holdfast/internal/shim/names"
	"holdfast/internal/shim/proto"
)

// nameServer is the container's name server.
type nameServer struct {
	mu     sync.Mutex
	server *names.Server // nil if there is none
	// Its parameters, for the handover state.
	view  string
	files [2]*os.File
}

// serve takes over the sockets of the container's name server. Earlier ones
// are closed: the rules that led to them were replaced.
func (n *nameServer) serve(view string, udp, tcp int) error {
	if descriptor.SocketType(udp) != unix.SOCK_DGRAM || descriptor.SocketType(tcp) != unix.SOCK_STREAM || !descriptor.Listens(tcp) {
		descriptor.CloseAll([]int{udp, tcp})
		return invalid("%s: want a datagram socket and a listening stream socket", proto.MethodNames)
	}
	for _, fd := range []int{udp, tcp} {
		if err := unix.SetNonblock(fd, true); err != nil {
			logf("name server's socket: %v", err)
		}
	}
	files := [2]*os.File{os.NewFile(uintptr(udp), "names udp"), os.NewFile(uintptr(tcp), "names tcp")}
	server := names.New(view, files[0], files[1])
	n.mu.Lock()
	old := n.server
	n.server, n.view, n.files = server, view, files
	n.mu.Unlock()
	if old != nil {
		old.Close()
	}
	go server.Serve()
	return nil
}

// serves reports whether there is one.
func (n *nameServer) serves() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.server != nil
}

// namesSection has the name server.
type namesSection struct {
	Names *savedNames `json:"names,omitempty"`
}

type savedNames struct {
	View string `json:"view"`
	UDP  int    `json:"udp"`
	TCP  int    `json:"tcp"`
}

func (sec *namesSection) descriptors() []*int {
	if n := sec.Names; n != nil {
		return []*int{&n.UDP, &n.TCP}
	}
	return nil
}

func (sec *namesSection) save(s *Shim) {
	n := &s.names
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.server != nil {
		sec.Names = &savedNames{View: n.view, UDP: descriptor.Number(n.files[0]), TCP: descriptor.Number(n.files[1])}
	}
}

func (sec *namesSection) restore(s *Shim) {
	if n := sec.Names; n != nil && n.UDP >= 0 && n.TCP >= 0 {
		if err := s.names.serve(n.View, n.UDP, n.TCP); err != nil {
			logf("name server: %v", err)
		}
	}
}
