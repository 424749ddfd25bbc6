// SPDX-License-Identifier: Apache-2.0

package proto

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// The messages are JSON in the form of encoding/json for the structs' tags, and
// other programs can use that package for them. A shim does not: the data that
// encoding/json caches about every type, and the stack that its recursion needs,
// were a fifth of a shim's memory. Here each type lists its fields once
// (fields.go), for both directions, and a coder visits them.

// fielder is a struct of this package. fields passes each of its fields to the
// coder, in the order in which they are written.
type fielder interface{ fields(c *coder) }

// Marshal is json.Marshal. Only pointers to structs of this package take the fast
// path; all else goes to encoding/json.
func Marshal(v any) ([]byte, error) { return appendJSON(nil, v) }

// appendJSON appends v to b.
func appendJSON(b []byte, v any) ([]byte, error) {
	f, ok := v.(fielder)
	if !ok {
		text, err := json.Marshal(v)
		return append(b, text...), err
	}
	c := coder{text: b}
	c.object(f)
	return c.text, c.err
}

// Unmarshal is json.Unmarshal for a pointer to a struct of this package, except
// that names of members are case-sensitive. All else goes to encoding/json.
func Unmarshal(text []byte, v any) error {
	f, ok := v.(fielder)
	if !ok {
		return json.Unmarshal(text, v)
	}
	c := coder{text: text, reading: true}
	if !c.null() {
		c.object(f)
	}
	if c.space(); c.err == nil && c.pos < len(c.text) {
		c.fail()
	}
	return c.err
}

var errDepth = errors.New("JSON is nested too deep")

// maxDepth bounds how deep values may be nested. The messages need 5 levels, and
// the foreign JSON in them not many more.
const maxDepth = 1000

// always and omit are values of leaveOut: whether a field that is zero or empty is
// omitted, like omitempty.
const (
	always = false
	omit   = true
)

// coder encodes or decodes one text. After the first error all its methods do
// nothing.
type coder struct {
	text    []byte
	reading bool
	pos     int // reading: the current offset
	depth   int
	key     []byte // reading: the name of the current member
	hit     bool   // reading: a field has this name
	err     error
}

func (c *coder) fail() {
	if c.err == nil {
		what := "end"
		if c.pos < len(c.text) {
			what = strconv.QuoteToASCII(string(c.text[c.pos : c.pos+1]))
		}
		c.err = fmt.Errorf("JSON: unexpected %s at byte %d, in or after %q", what, c.pos, c.key)
	}
}

// object encodes or decodes a struct.
func (c *coder) object(f fielder) {
	if !c.reading {
		c.text = append(c.text, '{')
		f.fields(c)
		c.text = append(c.text, '}')
		return
	}
	c.members(func() {
		c.hit = false
		f.fields(c)
		if !c.hit {
			c.skip()
		}
	})
	c.hit = true // for the field that contains this struct
}

// members decodes an object. value must decode the value of the member named key.
func (c *coder) members(value func()) {
	c.each('{', '}', func() {
		c.space()
		c.key = c.str()
		if c.space(); c.err == nil && !c.take(':') {
			c.fail()
		}
		if c.err == nil {
			value()
		}
	})
}

// each decodes a list between brackets. item must decode one element.
func (c *coder) each(open, end byte, item func()) {
	c.space()
	if c.err == nil && !c.take(open) {
		c.fail()
	}
	if c.depth++; c.depth > maxDepth && c.err == nil {
		c.err = errDepth
	}
	defer func() { c.depth-- }()
	c.space()
	if c.err != nil || c.take(end) {
		return
	}
	for {
		item()
		c.space()
		switch {
		case c.err != nil || c.take(end):
			return
		case !c.take(','):
			c.fail()
			return
		}
	}
}

// at reports whether the caller must encode or decode the field of that name now.
// When writing, at has then written the name. When reading, null leaves the field
// as it is.
func (c *coder) at(name string, leaveOut bool) bool {
	return c.named(name, leaveOut) && !(c.reading && c.null())
}

// named is at for fields that handle null themselves.
func (c *coder) named(name string, leaveOut bool) bool {
	if c.err != nil {
		return false
	}
	if c.reading {
		if c.hit || string(c.key) != name {
			return false
		}
		c.hit = true
		return true
	}
	if leaveOut {
		return false
	}
	if c.text[len(c.text)-1] != '{' {
		c.text = append(c.text, ',')
	}
	c.text = append(c.text, '"')
	c.text = append(c.text, name...)
	c.text = append(c.text, '"', ':')
	return true
}

func (c *coder) string(name string, p *string, leaveOut bool) {
	if !c.at(name, leaveOut && *p == "") {
		return
	}
	c.bareString(p)
}

func (c *coder) bareString(p *string) {
	if c.reading {
		*p = string(c.str())
	} else {
		c.text = appendString(c.text, *p)
	}
}

func (c *coder) bool(name string, p *bool, leaveOut bool) {
	if c.at(name, leaveOut && !*p) {
		c.bareBool(p)
	}
}

func (c *coder) bareBool(p *bool) {
	switch {
	case !c.reading:
		c.text = strconv.AppendBool(c.text, *p)
	case c.literal("true"):
		*p = true
	case c.literal("false"):
		*p = false
	default:
		c.fail()
	}
}

type integers interface {
	~int | ~int64 | ~uint | ~uint32 | ~uint64
}

func integer[T integers](c *coder, name string, p *T, leaveOut bool) {
	if c.at(name, leaveOut && *p == 0) {
		bareInteger(c, p)
	}
}

func bareInteger[T integers](c *coder, p *T) {
	signed := ^T(0) < 0
	if !c.reading {
		if signed {
			c.text = strconv.AppendInt(c.text, int64(*p), 10)
		} else {
			c.text = strconv.AppendUint(c.text, uint64(*p), 10)
		}
		return
	}
	text := c.number()
	if c.err != nil {
		return
	}
	var n T
	var fits bool
	if signed {
		i, err := strconv.ParseInt(string(text), 10, 64)
		n = T(i)
		fits = err == nil && int64(n) == i
	} else {
		u, err := strconv.ParseUint(string(text), 10, 64)
		n = T(u)
		fits = err == nil && uint64(n) == u
	}
	if !fits {
		c.err = fmt.Errorf("JSON: %q is no number of the field %q", text, c.key)
		return
	}
	*p = n
}

func (c *coder) time(name string, p *time.Time, leaveOut bool) {
	if !c.at(name, leaveOut && p.IsZero()) {
		return
	}
	if c.reading {
		c.space()
		if text := c.raw(); c.err == nil {
			c.err = p.UnmarshalJSON(text)
		}
		return
	}
	c.text = append(c.text, '"')
	c.text, c.err = p.AppendText(c.text)
	c.text = append(c.text, '"')
}

// data is a field in base64, as encoding/json has []byte.
func (c *coder) data(name string, p *[]byte, leaveOut bool) {
	if c.named(name, leaveOut && len(*p) == 0) {
		c.bareData(p)
	}
}

func (c *coder) bareData(p *[]byte) {
	switch {
	case !c.reading && *p == nil:
		c.text = append(c.text, "null"...)
	case !c.reading:
		c.text = append(c.text, '"')
		c.text = base64.StdEncoding.AppendEncode(c.text, *p)
		c.text = append(c.text, '"')
	case c.null():
		*p = nil
	default:
		if text := c.str(); c.err == nil {
			b := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
			n, err := base64.StdEncoding.Decode(b, text)
			*p, c.err = b[:n], err
		}
	}
}

// json is a field whose value is copied verbatim.
func (c *coder) json(name string, p *json.RawMessage, leaveOut bool) {
	if !c.named(name, leaveOut && len(*p) == 0) {
		return
	}
	switch {
	case c.reading:
		c.space()
		*p = bytes.Clone(c.raw())
	case len(*p) == 0:
		c.text = append(c.text, "null"...)
	default:
		c.text = append(c.text, *p...)
	}
}

func (c *coder) strings(name string, p *[]string, leaveOut bool) {
	list(c, name, p, leaveOut, func(s *string) {
		if !c.reading || !c.null() {
			c.bareString(s)
		}
	})
}

// table is a map, written in the order of its keys.
func (c *coder) table(name string, p *map[string]string, leaveOut bool) {
	if !c.named(name, leaveOut && len(*p) == 0) {
		return
	}
	switch {
	case !c.reading && *p == nil:
		c.text = append(c.text, "null"...)
	case !c.reading:
		c.text = append(c.text, '{')
		for i, k := range slices.Sorted(maps.Keys(*p)) {
			if i > 0 {
				c.text = append(c.text, ',')
			}
			c.text = appendString(c.text, k)
			c.text = append(c.text, ':')
			c.text = appendString(c.text, (*p)[k])
		}
		c.text = append(c.text, '}')
	case c.null():
		*p = nil
	default:
		if *p == nil {
			*p = map[string]string{}
		}
		m := *p
		c.members(func() {
			key, value := string(c.key), ""
			if !c.null() {
				value = string(c.str())
			}
			m[key] = value
		})
	}
}

// list is a slice; item encodes or decodes an element.
func list[T any](c *coder, name string, p *[]T, leaveOut bool, item func(*T)) {
	if !c.named(name, leaveOut && len(*p) == 0) {
		return
	}
	switch {
	case !c.reading && *p == nil:
		c.text = append(c.text, "null"...)
	case !c.reading:
		c.text = append(c.text, '[')
		for i := range *p {
			if i > 0 {
				c.text = append(c.text, ',')
			}
			item(&(*p)[i])
		}
		c.text = append(c.text, ']')
	case c.null():
		*p = nil
	default:
		*p = []T{}
		c.each('[', ']', func() {
			var v T
			item(&v)
			*p = append(*p, v)
		})
	}
}

// array is list for an array of fixed length.
func array[T any](c *coder, name string, p []T, item func(*T)) {
	if !c.at(name, false) {
		return
	}
	if !c.reading {
		c.text = append(c.text, '[')
		for i := range p {
			if i > 0 {
				c.text = append(c.text, ',')
			}
			item(&p[i])
		}
		c.text = append(c.text, ']')
		return
	}
	i := 0
	c.each('[', ']', func() {
		switch {
		case i >= len(p):
			c.skip()
		case !c.null():
			item(&p[i])
		}
		i++
	})
	for ; i < len(p); i++ {
		p[i] = *new(T)
	}
}

// structs is a slice of structs.
func structs[T any, P interface {
	*T
	fielder
}](c *coder, name string, p *[]T, leaveOut bool) {
	list(c, name, p, leaveOut, func(v *T) {
		if !c.reading || !c.null() {
			c.object(P(v))
		}
	})
}

// nested is a struct in a struct.
func nested[T any, P interface {
	*T
	fielder
}](c *coder, name string, p *T) {
	if c.at(name, false) {
		c.object(P(p))
	}
}

// pointer is an optional struct, which is omitted if nil.
func pointer[T any, P interface {
	*T
	fielder
}](c *coder, name string, p **T) {
	if !c.named(name, *p == nil) {
		return
	}
	if c.reading {
		if c.null() {
			*p = nil
			return
		}
		if *p == nil {
			*p = new(T)
		}
	}
	c.object(P(*p))
}

// space skips white space.
func (c *coder) space() {
	for c.pos < len(c.text) {
		switch c.text[c.pos] {
		case ' ', '\t', '\r', '\n':
			c.pos++
		default:
			return
		}
	}
}

func (c *coder) take(b byte) bool {
	if c.pos < len(c.text) && c.text[c.pos] == b {
		c.pos++
		return true
	}
	return false
}

// literal consumes the given word.
func (c *coder) literal(word string) bool {
	c.space()
	if len(c.text)-c.pos >= len(word) && string(c.text[c.pos:c.pos+len(word)]) == word {
		c.pos += len(word)
		return true
	}
	return false
}

func (c *coder) null() bool { return c.literal("null") }

// number consumes a number and returns its text.
func (c *coder) number() []byte {
	c.space()
	from := c.pos
	digits := func() {
		if c.pos >= len(c.text) || c.text[c.pos]-'0' > 9 {
			c.fail()
		}
		for c.pos < len(c.text) && c.text[c.pos]-'0' <= 9 {
			c.pos++
		}
	}
	c.take('-')
	if !c.take('0') {
		digits()
	}
	if c.take('.') {
		digits()
	}
	if c.take('e') || c.take('E') {
		if !c.take('+') {
			c.take('-')
		}
		digits()
	}
	return c.text[from:c.pos]
}

// raw consumes any value and returns its text.
func (c *coder) raw() []byte {
	from := c.pos
	c.skip()
	return c.text[from:c.pos]
}

// skip consumes any value.
func (c *coder) skip() {
	c.space()
	if c.err != nil || c.pos >= len(c.text) {
		c.fail()
		return
	}
	switch c.text[c.pos] {
	case '{':
		c.members(c.skip)
	case '[':
		c.each('[', ']', c.skip)
	case '"':
		c.str()
	case 't', 'f', 'n':
		if !c.literal("true") && !c.literal("false") && !c.literal("null") {
			c.fail()
		}
	default:
		c.number()
	}
}

// str consumes a string and returns its value, which aliases the text if it has no
// escapes.
func (c *coder) str() []byte {
	c.space()
	if c.err != nil || !c.take('"') {
		c.fail()
		return nil
	}
	from := c.pos
	for c.pos < len(c.text) {
		switch b := c.text[c.pos]; {
		case b == '"':
			c.pos++
			return c.text[from : c.pos-1]
		case b < ' ':
			c.fail()
			return nil
		case b == '\\' || b >= utf8.RuneSelf:
			return c.unescape(from)
		}
		c.pos++
	}
	c.fail()
	return nil
}

// unescape consumes the rest of a string that began at from and has had no escapes
// so far. Invalid UTF-8 becomes U+FFFD.
func (c *coder) unescape(from int) []byte {
	out := bytes.Clone(c.text[from:c.pos])
	for c.pos < len(c.text) {
		b := c.text[c.pos]
		switch {
		case b == '"':
			c.pos++
			return out
		case b < ' ':
			c.fail()
			return nil
		case b == '\\':
			c.pos++
			if out = c.escaped(out); c.err != nil {
				return nil
			}
		case b < utf8.RuneSelf:
			out = append(out, b)
			c.pos++
		default:
			r, n := utf8.DecodeRune(c.text[c.pos:])
			out = utf8.AppendRune(out, r)
			c.pos += n
		}
	}
	c.fail()
	return nil
}

// escaped consumes what follows a backslash.
func (c *coder) escaped(out []byte) []byte {
	if c.pos >= len(c.text) {
		c.fail()
		return out
	}
	b := c.text[c.pos]
	switch b {
	case '"', '\\', '/':
	case 'b':
		b = '\b'
	case 'f':
		b = '\f'
	case 'n':
		b = '\n'
	case 'r':
		b = '\r'
	case 't':
		b = '\t'
	case 'u':
		r, ok := c.hex(c.pos + 1)
		if !ok {
			c.fail()
			return out
		}
		c.pos += 5
		if utf16.IsSurrogate(r) {
			// A surrogate without its other half is not a character.
			r2, ok := rune(0), false
			if c.pos+1 < len(c.text) && c.text[c.pos] == '\\' && c.text[c.pos+1] == 'u' {
				r2, ok = c.hex(c.pos + 2)
			}
			if r = utf16.DecodeRune(r, r2); ok && r != utf8.RuneError {
				c.pos += 6
			}
		}
		return utf8.AppendRune(out, r)
	default:
		c.fail()
		return out
	}
	c.pos++
	return append(out, b)
}

// hex reads four hexadecimal digits.
func (c *coder) hex(at int) (rune, bool) {
	if at+4 > len(c.text) {
		return 0, false
	}
	var r rune
	for _, b := range c.text[at : at+4] {
		switch {
		case b-'0' <= 9:
			b -= '0'
		case b|0x20-'a' <= 5:
			b = b | 0x20 - 'a' + 10
		default:
			return 0, false
		}
		r = r<<4 | rune(b)
	}
	return r, true
}

const hexDigits = "0123456789abcdef"

// appendString writes a string with the escapes of encoding/json.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	for i := 0; i < len(s); {
		ch := s[i]
		if ch < utf8.RuneSelf {
			switch {
			case ch == '"' || ch == '\\':
				b = append(b, '\\', ch)
			case ch == '\b':
				b = append(b, '\\', 'b')
			case ch == '\f':
				b = append(b, '\\', 'f')
			case ch == '\n':
				b = append(b, '\\', 'n')
			case ch == '\r':
				b = append(b, '\\', 'r')
			case ch == '\t':
				b = append(b, '\\', 't')
			case ch < ' ' || ch == '<' || ch == '>' || ch == '&':
				b = append(b, '\\', 'u', '0', '0', hexDigits[ch>>4], hexDigits[ch&15])
			default:
				b = append(b, ch)
			}
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b = append(b, `\ufffd`...)
		case r == '\u2028' || r == '\u2029':
			b = append(b, `\u202`...)
			b = append(b, hexDigits[r&15])
		default:
			b = append(b, s[i:i+n]...)
		}
		i += n
	}
	return append(b, '"')
}
