// SPDX-License-Identifier: Apache-2.0

package container

import "encoding/binary"

// frameHead is the size of a stdcopy frame's head: one byte for the stream,
// three of zero, four for the payload's size, big endian.
const frameHead = 8

// putSize fills in the size of the frame that b is.
func putSize(b []byte) {
	binary.BigEndian.PutUint32(b[4:], uint32(len(b)-frameHead))
}
