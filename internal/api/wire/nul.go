// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"net/url"
	"strings"
)

// NoNUL refuses a path or a query with a NUL byte. No name, path, environment
// variable or argument on Linux can have one, and the kernel would only answer
// "invalid argument".
func NoNUL(path string, query url.Values) error {
	if strings.IndexByte(path, 0) >= 0 {
		return Invalid("invalid path %q: it has a NUL byte", path)
	}
	for name, values := range query {
		for _, v := range append([]string{name}, values...) {
			if strings.IndexByte(v, 0) >= 0 {
				return Invalid("invalid value %q for parameter %q: it has a NUL byte", v, name)
			}
		}
	}
	return nil
}

// hasNUL finds the first escaped NUL byte in valid JSON, which has no other way
// to write one. It returns -1 if there is none.
func hasNUL(body []byte) int {
	for from := 0; ; {
		at := bytes.Index(body[from:], []byte(`\u0000`))
		if at < 0 {
			return -1
		}
		at += from
		slashes := 0
		for at-slashes > 0 && body[at-slashes-1] == '\\' {
			slashes++
		}
		if slashes%2 == 0 {
			return at
		}
		from = at + 1
	}
}
