// SPDX-License-Identifier: Apache-2.0

package stream

import "encoding/binary"

// HeaderSize is the length in bytes of the header in a multiplexed stream of the
// Docker Engine API: the stream's number, three zeros, and the length of the
// payload, 4 bytes big-endian.
const HeaderSize = 8

// Header returns the header for n bytes of a stream; 1 is stdout, 2 is stderr.
func Header(source byte, n int) (h [HeaderSize]byte) {
	h[0] = source
	binary.BigEndian.PutUint32(h[4:], uint32(n))
	return h
}

// Frame returns a copy of p in the form that a client gets. With raw it has no
// header.
func Frame(source byte, p []byte, raw bool) []byte {
	if raw {
		return append([]byte(nil), p...)
	}
	h := Header(source, len(p))
	return append(append(make([]byte, 0, HeaderSize+len(p)), h[:]...), p...)
}
