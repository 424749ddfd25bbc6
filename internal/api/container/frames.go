package container

import (
	"encoding/binary"
	"maps"
	"net/url"
	"slices"
)

// frameHead is the size of a stdcopy frame's head: one byte for the stream,
// three of zero, four for the payload's size, big endian.
const frameHead = 8

// putSize fills in the size of the frame that b is.
func putSize(b []byte) {
	binary.BigEndian.PutUint32(b[4:], uint32(len(b)-frameHead))
}

// appendAttrs adds k=v pairs in the order of their keys, escaped as in a query
// and separated by commas: what docker logs --details prints.
func appendAttrs(b []byte, attrs map[string]string) []byte {
	for i, k := range slices.Sorted(maps.Keys(attrs)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, url.QueryEscape(k)...)
		b = append(b, '=')
		b = append(b, url.QueryEscape(attrs[k])...)
	}
	return b
}
