// SPDX-License-Identifier: Apache-2.0

package filter

import "testing"

// FuzzFilters: every method accepts what was parsed, and the values are those of
// the input.
func FuzzFilters(f *testing.F) {
	for _, s := range []string{
		"", "{}", `{"label":{"a=b":true,"c":false}}`, `{"name":["a","b"]}`, `{"name":null}`, `null`, `[]`, `{"a":{"b":1}}`, `{"":{"":true}}`, `{"name":["(((","[","\\"]}`, "\x00", `{"a":`,
		`{"name":["(a+)+$"]}`,
	} {
		f.Add(s, "web")
	}
	f.Fuzz(func(t *testing.T, text, value string) {
		args, err := ParseJSON(text)
		if err != nil {
			if args != nil {
				t.Error("an error, and filters")
			}
			return
		}
		for term, values := range args {
			for _, v := range values {
				if !args.Exact(term, v) || !args.Prefix(term, v) || !args.Match(term, v) {
					t.Errorf("%q does not match itself", v)
				}
			}
			args.Match(term, value)
			args.KV(term, map[string]string{value: value})
			_, _, _ = args.Bool(term)
			if args.Check() == nil {
				t.Errorf("%q is known though nothing is", term)
			}
		}
		if !args.Exact("\x00none", value) || !args.Match("\x00none", value) {
			t.Error("a term that was not given excludes")
		}
	})
}
