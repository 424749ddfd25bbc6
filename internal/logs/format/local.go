// SPDX-License-Identifier: Apache-2.0

package format

import "time"

//lint:file-ignore SA4016 A key is always field<<3|wiretype here, also where the wire type is 0.

// The local format: protocol buffers of Docker's
// api/types/plugins/logdriver/entry.proto, each between its length as
// a big-endian uint32, so that it is read forwards and backwards.
//
//	message LogEntry {
//	  string source = 1;
//	  int64 time_nano = 2;
//	  bytes line = 3;                 // without its newline
//	  bool partial = 4;               // a part of a longer line
//	  PartialLogEntryMetadata partial_log_metadata = 5;
//	}
//	message PartialLogEntryMetadata {
//	  bool last = 1;
//	  string id = 2;                  // the same for all parts of a line
//	  int32 ordinal = 3;              // from 1
//	}

// encodeLocal writes p as one entry into buf at offset n and returns the end.
// buf must have room for len(p)+256 bytes.
func encodeLocal(buf []byte, n int, src Source, at time.Time, p []byte, s *stream, last bool) int {
	start := n
	b := buf[:n+4]
	b = append(b, 1<<3|2, byte(len(names[src])))
	b = append(b, names[src]...)
	b = append(b, 2<<3|0)
	b = appendVarint(b, uint64(at.UnixNano()))
	if len(p) > 0 {
		b = append(b, 3<<3|2)
		b = appendVarint(b, uint64(len(p)))
		b = append(b, p...)
	}
	if s.split {
		b = append(b, 4<<3|0, 1, 5<<3|2, 0)
		size := len(b)
		if last {
			b = append(b, 1<<3|0, 1)
		}
		b = append(b, 2<<3|2, byte(len(s.id)))
		b = append(b, s.id[:]...)
		b = append(b, 3<<3|0)
		b = appendVarint(b, uint64(s.ordinal))
		b[size-1] = byte(len(b) - size) // always under 128, so one byte
	}
	size := uint32(len(b) - start - 4)
	putLength(b[start:], size)
	b = append(b, 0, 0, 0, 0)
	putLength(b[len(b)-4:], size)
	return len(b)
}

func appendVarint(b []byte, x uint64) []byte {
	for x >= 0x80 {
		b = append(b, byte(x)|0x80)
		x >>= 7
	}
	return append(b, byte(x))
}

func putLength(b []byte, n uint32) {
	b[0], b[1], b[2], b[3] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
}

func length(b []byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}
