// SPDX-License-Identifier: Apache-2.0

// Package ports holds the host's sockets of a container's published ports, so that
// no other program can bind these ports. The kernel translates almost all traffic
// before it reaches the sockets. What it can't translate, such as a connection to
// [::1], is forwarded here.
//
//	ports.go     the sockets, and where they lead
//	tcp.go       forwarded connections
//	udp.go       forwarded datagrams
//	handover.go  what a re-exec hands over of all this
//
// The package knows nothing of the container but the addresses of its ports. It
// moves bytes in the steps of package stream, so that a re-exec loses none. Order of
// locks: Set.mu, then stream.Motion, then Set.flows or that of a UDP port. Who saves
// the state holds stream.Motion, and must not take Set.mu.
package ports
