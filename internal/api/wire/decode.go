// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"reflect"
	"slices"
	"strings"
)

// maxBody bounds a JSON body, in bytes. The largest bodies that clients send
// (configurations with embedded files) are far smaller.
const maxBody = 32 << 20

// whiteSpace is the white space of JSON (RFC 8259, section 2), which is a
// subset of Unicode's.
const whiteSpace = " \t\r\n"

// Decode reads the JSON body into v. Malformed JSON, a field of the wrong type,
// a NUL byte and content after the value are refused (400); the message names
// the place and what was expected. Fields that v does not have are ignored, as
// in dockerd. Without a body v is unchanged and Decode returns false.
func (r *Request) Decode(w http.ResponseWriter, v any) (bool, error) {
	body, err := r.ReadBody(w)
	if err != nil || body == nil {
		return false, err
	}
	return true, DecodeBytes(body, v)
}

// ReadBody reads a JSON body. It returns nil if there is none.
func (r *Request) ReadBody(w http.ResponseWriter) ([]byte, error) {
	ct := r.Header.Get("Content-Type")
	empty := r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0
	if ct == "" && empty {
		return nil, nil
	}
	kind, _, err := mime.ParseMediaType(ct)
	if err != nil {
		return nil, Invalid("malformed Content-Type header (%s): must be 'application/json'", ct)
	}
	if kind != "application/json" {
		return nil, Invalid("unsupported Content-Type header (%s): must be 'application/json'", ct)
	}
	if empty {
		return nil, nil
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, fmt.Errorf("request body is larger than %d bytes: %w", maxBody, err)
		}
		return nil, Invalid("failed to read the request body: %w", err)
	}
	if len(bytes.TrimLeft(body, whiteSpace)) == 0 {
		return nil, Invalid("invalid JSON: got EOF while reading request body")
	}
	return body, nil
}

// DecodeBytes is Decode for a body that was already read.
func DecodeBytes(body []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	if err := dec.Decode(v); err != nil {
		return describe(body, reflect.TypeOf(v), err)
	}
	if rest := bytes.TrimLeft(body[dec.InputOffset():], whiteSpace); len(rest) > 0 {
		return Invalid("invalid JSON: unexpected content after JSON at %s", position(body, int64(len(body)-len(rest))))
	}
	if at := hasNUL(body); at >= 0 {
		return Invalid("invalid JSON: a string has a NUL byte at %s", position(body, int64(at)))
	}
	return nil
}

// describe turns an error of encoding/json into a message on which a user can
// act.
func describe(body []byte, t reflect.Type, err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return Invalid("invalid JSON: unexpected end of the request body at %s: a value, object or list is not closed", position(body, int64(len(body))))
	case errors.As(err, &syntax):
		return Invalid("invalid JSON: %s at %s", syntax, position(body, syntax.Offset-1))
	case errors.As(err, &kind):
		field := fieldPath(t, kind.Field)
		if field == "" {
			field = "(the whole body)"
		}
		return Invalid("invalid JSON: field %s: got %s, want %s, at %s", field, kind.Value, name(kind.Type), position(body, kind.Offset-1))
	}
	// A type's own UnmarshalText or UnmarshalJSON failed. Its error does not
	// name the field, so find the field.
	if field, cause := locate(body, t, ""); field != "" {
		return Invalid("invalid JSON: field %s: %w", field, cause)
	}
	return Invalid("invalid JSON: %w", err)
}

// fieldPath is a path of encoding/json without the names of embedded structs,
// which exist in Go but not in the JSON.
func fieldPath(t reflect.Type, path string) string {
	var out []string
	for _, part := range strings.Split(path, ".") {
		for t != nil && (t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Array || t.Kind() == reflect.Map) {
			t = t.Elem()
		}
		if t == nil || t.Kind() != reflect.Struct {
			out = append(out, part)
			t = nil
			continue
		}
		var field *reflect.StructField
		for i := range t.NumField() {
			f := t.Field(i)
			tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if f.Name == part && tag == "" || tag == part && tag != "" {
				field = &f
				break
			}
		}
		switch {
		case field == nil:
			out = append(out, part)
			t = nil
		case field.Anonymous && field.Tag.Get("json") == "":
			t = field.Type
		default:
			out = append(out, part)
			t = field.Type
		}
	}
	return strings.Join(out, ".")
}

func position(body []byte, offset int64) string {
	if offset < 0 {
		offset = 0
	}
	if offset > int64(len(body)) {
		offset = int64(len(body))
	}
	before := body[:offset]
	line := bytes.Count(before, []byte("\n")) + 1
	column := len(before) - bytes.LastIndexByte(before, '\n')
	return fmt.Sprintf("line %d, column %d", line, column)
}

// name describes a Go type in JSON's terms.
func name(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return "a string"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a string"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return fmt.Sprintf("a whole number (%d bits)", t.Bits())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return fmt.Sprintf("a whole number that is not negative (%d bits)", t.Bits())
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice, reflect.Array:
		return "a list of which each item is " + name(t.Elem())
	case reflect.Map, reflect.Struct:
		return "an object"
	}
	return t.String()
}

// locate finds the innermost value that can't be decoded into its type. It
// returns its path and the error, or "" if all values can be decoded.
func locate(raw json.RawMessage, t reflect.Type, path string) (string, error) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	err := json.Unmarshal(raw, reflect.New(t).Interface())
	if err == nil {
		return "", nil
	}
	own := reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) ||
		reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]())
	// A struct that embeds a type inherits its decoding methods, but the
	// structs used here do not decode themselves. So always descend into their
	// fields.
	switch {
	case own && t.Kind() != reflect.Struct:
	case t.Kind() == reflect.Struct || t.Kind() == reflect.Map:
		var members map[string]json.RawMessage
		if json.Unmarshal(raw, &members) != nil {
			break
		}
		for _, key := range slices.Sorted(maps.Keys(members)) {
			member := members[key]
			mt, ok := memberType(t, key)
			if !ok {
				continue
			}
			if p, cause := locate(member, mt, join(path, key)); p != "" {
				return p, cause
			}
		}
	case t.Kind() == reflect.Slice || t.Kind() == reflect.Array:
		var items []json.RawMessage
		if json.Unmarshal(raw, &items) != nil {
			break
		}
		for i, item := range items {
			if p, cause := locate(item, t.Elem(), fmt.Sprintf("%s[%d]", path, i)); p != "" {
				return p, cause
			}
		}
	}
	return path, err
}

func memberType(t reflect.Type, key string) (reflect.Type, bool) {
	if t.Kind() == reflect.Map {
		return t.Elem(), true
	}
	for _, f := range reflect.VisibleFields(t) {
		if !f.IsExported() {
			continue
		}
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case tag == "-", f.Anonymous && tag == "":
			continue
		case tag == "":
			tag = f.Name
		}
		if strings.EqualFold(tag, key) {
			return f.Type, true
		}
	}
	return nil, false
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
