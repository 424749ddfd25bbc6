// SPDX-License-Identifier: Apache-2.0

package format

import (
	"encoding/binary"
	"slices"
)

// streamHead is the size of the header of a frame of the Docker Engine API: one
// byte for the stream, three zero bytes, four for the payload's size,
// big-endian.
const streamHead = 8

// streamTime always has nine decimals, so that lines are aligned. It is the
// format of docker logs --timestamps.
const streamTime = "2006-01-02T15:04:05.000000000Z07:00"

// Encoder encodes log lines as GET /containers/{id}/logs of the Docker Engine
// API sends them: in frames, or unframed if they come from a terminal.
type Encoder struct {
	Raw, Timestamps, Details bool
	// Within reports, for stdout and stderr, that the last piece had no
	// newline.
	Within [2]bool
}

// Append appends one line. A long line has its prefixes only before the first
// piece.
func (e *Encoder) Append(b []byte, l Line) []byte {
	src, i := Stdout, 0
	if l.Source == names[Stderr] {
		src, i = Stderr, 1
	}
	start := len(b)
	if !e.Raw {
		b = append(b, byte(src), 0, 0, 0, 0, 0, 0, 0)
	}
	if !e.Within[i] {
		if e.Timestamps {
			b = l.Time.UTC().AppendFormat(b, streamTime)
			b = append(b, ' ')
		}
		if e.Details {
			b = appendDetails(b, l.Attrs)
			b = append(b, ' ')
		}
	}
	b = append(b, l.Line...)
	e.Within[i] = len(l.Line) > 0 && l.Line[len(l.Line)-1] != '\n'
	if !e.Raw {
		binary.BigEndian.PutUint32(b[start+4:], uint32(len(b)-start-streamHead))
	}
	return b
}

// appendDetails appends k=v pairs sorted by key, escaped as in a query and
// separated by commas, as docker logs --details prints them.
func appendDetails(b []byte, attrs map[string]string) []byte {
	keys := make([]string, 0, len(attrs))
	for k := range attrs {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for i, k := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendQuery(b, k)
		b = append(b, '=')
		b = appendQuery(b, attrs[k])
	}
	return b
}

// appendQuery escapes as net/url does for a query. The shim does not link
// net/url.
func appendQuery(b []byte, s string) []byte {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.' || c == '~':
			b = append(b, c)
		case c == ' ':
			b = append(b, '+')
		default:
			b = append(b, '%', "0123456789ABCDEF"[c>>4], "0123456789ABCDEF"[c&15])
		}
	}
	return b
}
