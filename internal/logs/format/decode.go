// SPDX-License-Identifier: Apache-2.0

package format

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math/bits"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// RecordLimit is the size in bytes above which a record can't be one of ours:
// 16 KiB of text escape to 96 KiB, and the rest are attributes.
const RecordLimit = 16 << 20

// ErrDamaged is returned for bytes of a log file that are not a record.
var ErrDamaged = errors.New("log file is damaged")

// Line is one line, or a part of a line that was split.
type Line struct {
	Time   time.Time
	Source string // stdout or stderr
	// Line includes its newline if it had one. Line and Attrs are valid only
	// until the next line is read.
	Line  []byte
	Attrs map[string]string
}

// Decoder reads one format of log files.
type Decoder interface {
	// Record returns the length of the whole record at the beginning of p, 0 if
	// more data is needed, or ErrDamaged.
	Record(p []byte) (int, error)
	// Decode reads one record. The line is valid until the next call.
	Decode(record []byte) (Line, bool)
}

// NewDecoder returns the decoder for a driver, or nil if its logs can't be
// read.
//
// attrs are those of the log's Config. A local log does not store them, so its
// decoder adds them to each line.
func NewDecoder(driver string, attrs map[string]string) Decoder {
	switch driver {
	case "", DriverJSON:
		return &JSONDecoder{}
	case DriverLocal:
		return &LocalDecoder{Attrs: attrs}
	}
	return nil
}

// JSONDecoder reads json-file.
type JSONDecoder struct {
	text  []byte
	raw   []byte // attributes of the last line that had some
	attrs map[string]string
	// What follows the text in the last record, and its meaning. Lines that were
	// read from a container together have all of it in common.
	rest []byte
	last Line // without a text
	// The last time of day up to its seconds, as it was written.
	second []byte
	base   time.Time
}

// Record implements Decoder.
func (d *JSONDecoder) Record(p []byte) (int, error) {
	return bytes.IndexByte(p, '\n') + 1, nil
}

var (
	logKey    = []byte(`{"log":"`)
	streamKey = []byte(`,"stream":"`)
	attrsKey  = []byte(`,"attrs":`)
	timeKey   = []byte(`,"time":"`)
)

// Decode implements Decoder. It has a fast path for the form that Docker and
// package format write. Any other JSON of the same meaning is decoded by
// encoding/json.
func (d *JSONDecoder) Decode(record []byte) (Line, bool) {
	p := record
	for len(p) > 0 && (p[len(p)-1] == '\n' || p[len(p)-1] == '\r') {
		p = p[:len(p)-1]
	}
	rest, ok := bytes.CutPrefix(p, logKey)
	if !ok {
		return d.slow(p)
	}
	d.text, rest, ok = unescape(d.text[:0], rest)
	if !ok {
		return d.slow(p)
	}
	if len(d.rest) == 0 || !bytes.Equal(rest, d.rest) {
		last, ok := d.decodeRest(rest)
		if !ok {
			return d.slow(p)
		}
		d.rest, d.last = append(d.rest[:0], rest...), last
	}
	line := d.last
	line.Line = d.text
	return line, true
}

// decodeRest reads what follows the text in a record.
func (d *JSONDecoder) decodeRest(rest []byte) (line Line, ok bool) {
	if rest, ok = bytes.CutPrefix(rest, streamKey); !ok {
		return line, false
	}
	switch {
	case bytes.HasPrefix(rest, []byte(`stdout"`)):
		line.Source = "stdout"
	case bytes.HasPrefix(rest, []byte(`stderr"`)):
		line.Source = "stderr"
	default:
		return line, false
	}
	rest = rest[len(`stdout"`):]
	if after, ok := bytes.CutPrefix(rest, attrsKey); ok {
		// A quote within an attribute is escaped, so this match is the key
		// itself.
		end := bytes.LastIndex(after, timeKey)
		if end < 0 {
			return line, false
		}
		if line.Attrs, ok = d.attributes(after[:end]); !ok {
			return line, false
		}
		rest = after[end:]
	}
	rest, ok = bytes.CutPrefix(rest, timeKey)
	stamp, tail, cut := bytes.Cut(rest, []byte(`"`))
	if !ok || !cut || string(tail) != "}" {
		return line, false
	}
	line.Time, ok = d.time(stamp)
	return line, ok
}

// secondLen is the length of a time up to its seconds.
const secondLen = len("2006-01-02T15:04:05")

// time parses a time. Of one within the same second as the last one only the
// fraction is parsed.
func (d *JSONDecoder) time(stamp []byte) (time.Time, bool) {
	utc := len(stamp) > secondLen && stamp[len(stamp)-1] == 'Z'
	if utc && len(d.second) > 0 && bytes.Equal(stamp[:secondLen], d.second) {
		if ns, ok := fraction(stamp[secondLen : len(stamp)-1]); ok {
			return d.base.Add(ns), true
		}
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return time.Time{}, false
	}
	if utc {
		d.second = append(d.second[:0], stamp[:secondLen]...)
		d.base = t.Add(-time.Duration(t.Nanosecond()))
	}
	return t, true
}

// fraction reads a point and one to nine digits as a part of a second.
func fraction(p []byte) (time.Duration, bool) {
	if len(p) < 2 || len(p) > 10 || p[0] != '.' {
		return 0, false
	}
	var ns time.Duration
	for _, c := range p[1:] {
		if c < '0' || c > '9' {
			return 0, false
		}
		ns = ns*10 + time.Duration(c-'0')
	}
	for range 10 - len(p) {
		ns *= 10
	}
	return ns, true
}

// attributes caches the decoded attributes, because they are the same in all
// lines of a log.
func (d *JSONDecoder) attributes(raw []byte) (map[string]string, bool) {
	if bytes.Equal(raw, d.raw) {
		return d.attrs, true
	}
	var m map[string]string
	if json.Unmarshal(raw, &m) != nil {
		return nil, false
	}
	d.raw, d.attrs = append(d.raw[:0], raw...), m
	return m, true
}

func (d *JSONDecoder) slow(p []byte) (Line, bool) {
	var v struct {
		Log    string            `json:"log"`
		Stream string            `json:"stream"`
		Attrs  map[string]string `json:"attrs"`
		Time   time.Time         `json:"time"`
	}
	if json.Unmarshal(p, &v) != nil {
		return Line{}, false
	}
	return Line{Time: v.Time, Source: v.Stream, Line: []byte(v.Log), Attrs: v.Attrs}, true
}

// unescape reads a JSON string without its first quote, and appends its text to
// b.
func unescape(b, p []byte) (text, rest []byte, ok bool) {
	for {
		i := plain(p)
		b = append(b, p[:i]...)
		if i == len(p) || p[i] < 0x20 {
			return b, nil, false
		}
		if p[i] == '"' {
			return b, p[i+1:], true
		}
		if p = p[i+1:]; len(p) == 0 {
			return b, nil, false
		}
		c := p[0]
		p = p[1:]
		switch c {
		case '"', '\\', '/':
			b = append(b, c)
		case 'n':
			b = append(b, '\n')
		case 'r':
			b = append(b, '\r')
		case 't':
			b = append(b, '\t')
		case 'b':
			b = append(b, '\b')
		case 'f':
			b = append(b, '\f')
		case 'u':
			r, ok := hex4(p)
			if !ok {
				return b, nil, false
			}
			p = p[4:]
			if utf16.IsSurrogate(r) {
				low, ok := rune(0), false
				if len(p) >= 6 && p[0] == '\\' && p[1] == 'u' {
					low, ok = hex4(p[2:])
				}
				if r = utf16.DecodeRune(r, low); ok && r != utf8.RuneError {
					p = p[6:]
				}
			}
			b = utf8.AppendRune(b, r)
		default:
			return b, nil, false
		}
	}
}

// plain returns how many bytes at the beginning of p stand for themselves in a
// JSON string. It tests eight bytes at once: x-ones borrows from the high bit of
// a byte that is 0, and from a byte above it only then, so the lowest mark is
// always true.
func plain(p []byte) int {
	i := 0
	for ; i+8 <= len(p); i += 8 {
		x := load(p[i:])
		quote, slash := x^'"'*ones, x^'\\'*ones
		m := ((quote-ones)&^quote | (slash-ones)&^slash | (x-0x20*ones)&^x) & highs
		if m != 0 {
			return i + bits.TrailingZeros64(m)/8
		}
	}
	for i < len(p) && p[i] != '"' && p[i] != '\\' && p[i] >= 0x20 {
		i++
	}
	return i
}

func hex4(p []byte) (rune, bool) {
	if len(p) < 4 {
		return 0, false
	}
	var r rune
	for _, c := range p[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// LocalDecoder reads local.
type LocalDecoder struct {
	Attrs map[string]string // of every line
	text  []byte
}

// Record implements Decoder.
func (d *LocalDecoder) Record(p []byte) (int, error) {
	if len(p) < 4 {
		return 0, nil
	}
	n := int64(binary.BigEndian.Uint32(p))
	if n+8 > RecordLimit {
		return 0, ErrDamaged
	}
	if int64(len(p)) < n+8 {
		return 0, nil
	}
	if int64(binary.BigEndian.Uint32(p[n+4:])) != n {
		return 0, ErrDamaged
	}
	return int(n) + 8, nil
}

// Decode implements Decoder: a record is a LogEntry.
func (d *LocalDecoder) Decode(record []byte) (Line, bool) {
	var line Line
	newline := true
	d.text = d.text[:0]
	ok := eachField(record[4:len(record)-4], func(field int, v uint64, p []byte) bool {
		switch field {
		case 1:
			switch string(p) {
			case "stdout":
				line.Source = "stdout"
			case "stderr":
				line.Source = "stderr"
			}
		case 2:
			line.Time = time.Unix(0, int64(v)).UTC()
		case 3:
			d.text = append(d.text, p...)
		case 4:
			newline = newline && v == 0
		case 5:
			return eachField(p, func(field int, v uint64, _ []byte) bool {
				if field == 1 {
					newline = v != 0
				}
				return true
			})
		}
		return true
	})
	if newline {
		d.text = append(d.text, '\n')
	}
	line.Line, line.Attrs = d.text, d.Attrs
	return line, ok && line.Source != ""
}

// eachField calls each for the fields of a protocol buffer message, with v for
// numbers and p for fields with a length.
func eachField(p []byte, each func(field int, v uint64, p []byte) bool) bool {
	for len(p) > 0 {
		key, n := binary.Uvarint(p)
		if n <= 0 {
			return false
		}
		p = p[n:]
		var v uint64
		var b []byte
		switch key & 7 {
		case 0, 2:
			if v, n = binary.Uvarint(p); n <= 0 {
				return false
			}
			p = p[n:]
			if key&7 == 2 {
				if v > uint64(len(p)) {
					return false
				}
				b, p = p[:v], p[v:]
			}
		case 1:
			if len(p) < 8 {
				return false
			}
			v, p = binary.LittleEndian.Uint64(p), p[8:]
		case 5:
			if len(p) < 4 {
				return false
			}
			v, p = uint64(binary.LittleEndian.Uint32(p)), p[4:]
		default:
			return false
		}
		if !each(int(key>>3), v, b) {
			return false
		}
	}
	return true
}
