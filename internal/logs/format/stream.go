package format

import (
	"encoding/binary"
	"slices"
)

// streamHead is the size of the head of a frame of the Docker Engine API: one
// byte for the stream, three of zero, four for the payload's size, big-endian.
const streamHead = 8

// streamTime has always nine decimals, so that lines stand in columns; it is
// what docker logs --timestamps prints.
const streamTime = "2006-01-02T15:04:05.000000000Z07:00"

// Encoder writes log lines as GET /containers/{id}/logs of the Docker Engine
// API sends them: in frames, or as they are if they come from a terminal.
type Encoder struct {
	Raw, Timestamps, Details bool
	// Within: the last piece of stdout, of stderr, had no newline.
	Within [2]bool
}

// Append adds one line. The prefixes come before the first piece of a long line
// only.
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

// appendDetails adds k=v pairs in the order of their keys, escaped as in a query
// and separated by commas: what docker logs --details prints.
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

// appendQuery escapes as net/url does for a query: that package is no part of
// the shim.
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
