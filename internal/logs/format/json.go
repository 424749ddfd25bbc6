// SPDX-License-Identifier: Apache-2.0

package format

import (
	"math/bits"
	"slices"
	"time"
	"unicode/utf8"
)

// The json-file format: one JSON object a line,
//
//	{"log":"text\n","stream":"stdout","attrs":{"k":"v"},"time":"2026-01-02T03:04:05.123456789Z"}
//
// with the escapes of Docker's writer: \" \\ \n \r, \u00xx for other control
// characters and < > &, \u2028 and \u2029, and \ufffd for each byte that is not
// valid UTF-8. If a line is split, only its last part ends with \n.

const hexDigits = "0123456789abcdef"

// encodeJSON writes p as one record into buf at offset n and returns the end.
// buf must have room for 6*len(p)+len(suffix)+32 bytes.
func encodeJSON(buf []byte, n int, p []byte, newline bool, suffix []byte) int {
	// Docker omits an empty "log". Only an empty part would have one, and such
	// a part is never written.
	store(buf[n:], head)
	n += 8
	n = escape(buf, n, p)
	if newline {
		buf[n], buf[n+1] = '\\', 'n'
		n += 2
	}
	return n + copy(buf[n:], suffix)
}

// Each constant repeats a byte, to test eight bytes at once.
const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// head is `{"log":"` as load reads it.
const head = 0x223a22676f6c227b

// special finds bytes that can't appear unchanged in a JSON string, or are not
// ASCII. It sets the high bit of the lowest such byte of x; marks above that
// one may be false or missing. '"' and '&' differ in one bit, and so do '<' and
// '>', so one comparison tests for both. For an ASCII byte, adding 0x7f sets
// the high bit if the byte is not 0. These sums carry into the next byte only
// from a byte that is marked.
func special(x uint64) uint64 {
	a := (x | 0x04*ones) ^ 0x26*ones // 0 for " &
	b := (x | 0x02*ones) ^ 0x3e*ones // 0 for < >
	c := x ^ 0x5c*ones               // 0 for a backslash
	plain := (a + 0x7f*ones) & (b + 0x7f*ones) & (c + 0x7f*ones) & (x + 0x60*ones)
	return (^plain | x) & highs
}

// escape copies p, escaped, into buf at offset n and returns the end.
func escape(buf []byte, n int, p []byte) int {
	for {
		for len(p) >= 8 {
			x := load(p)
			store(buf[n:], x)
			if m := special(x); m != 0 {
				k := bits.TrailingZeros64(m) / 8
				n += k
				p = p[k:]
				break
			}
			n += 8
			p = p[8:]
		}
		if len(p) == 0 {
			return n
		}
		c := p[0]
		switch {
		case c >= utf8.RuneSelf:
			var used int
			n, used = escapeRune(buf, n, p)
			p = p[used:]
			continue
		case c == '"' || c == '\\':
			buf[n], buf[n+1] = '\\', c
			n += 2
		case c == '\n':
			buf[n], buf[n+1] = '\\', 'n'
			n += 2
		case c == '\r':
			buf[n], buf[n+1] = '\\', 'r'
			n += 2
		case c < 0x20 || c == '<' || c == '>' || c == '&':
			n += copy(buf[n:], `\u00`)
			buf[n], buf[n+1] = hexDigits[c>>4], hexDigits[c&15]
			n += 2
		default:
			buf[n] = c
			n++
		}
		p = p[1:]
	}
}

// escapeRune copies the run of non-ASCII bytes at the beginning of p.
func escapeRune(buf []byte, n int, p []byte) (end, used int) {
	for used < len(p) && p[used] >= utf8.RuneSelf {
		r, size := utf8.DecodeRune(p[used:])
		switch {
		case r == utf8.RuneError && size == 1:
			n += copy(buf[n:], `\ufffd`)
		case r == '\u2028' || r == '\u2029':
			n += copy(buf[n:], `\u202`)
			buf[n] = hexDigits[r&15]
			n++
		default:
			n += copy(buf[n:], p[used:used+size])
		}
		used += size
	}
	return n, used
}

// appendSuffix appends what follows the text in a record of src at the time
// now.
func (l *Log) appendSuffix(b []byte, src Source, now time.Time) []byte {
	b = append(b, `","stream":"`...)
	b = append(b, names[src]...)
	b = append(b, `",`...)
	b = append(b, l.attrs...)
	b = append(b, `"time":"`...)
	b = now.UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, "\"}\n"...)
}

// appendAttrs appends `"attrs":{…},` with sorted keys, as encoding/json does
// for a map. It appends nothing if there are no attributes.
func appendAttrs(b []byte, attrs map[string]string) []byte {
	if len(attrs) == 0 {
		return b
	}
	keys := make([]string, 0, len(attrs))
	for k := range attrs {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	b = append(b, `"attrs":{`...)
	for i, k := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, k)
		b = append(b, ':')
		b = appendString(b, attrs[k])
	}
	return append(b, "},"...)
}

func appendString(b []byte, s string) []byte {
	buf := make([]byte, 6*len(s)+8)
	b = append(b, '"')
	b = append(b, buf[:escape(buf, 0, []byte(s))]...)
	return append(b, '"')
}

func appendHex(b []byte, x uint64) []byte {
	for shift := 60; shift >= 0; shift -= 4 {
		b = append(b, hexDigits[x>>shift&15])
	}
	return b
}

// load and store compile to single instructions, because the compiler joins the
// bytes.
func load(b []byte) uint64 {
	_ = b[7]
	return uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24 |
		uint64(b[4])<<32 | uint64(b[5])<<40 | uint64(b[6])<<48 | uint64(b[7])<<56
}

func store(b []byte, x uint64) {
	_ = b[7]
	b[0] = byte(x)
	b[1] = byte(x >> 8)
	b[2] = byte(x >> 16)
	b[3] = byte(x >> 24)
	b[4] = byte(x >> 32)
	b[5] = byte(x >> 40)
	b[6] = byte(x >> 48)
	b[7] = byte(x >> 56)
}
