// Package filter holds the filters argument of the Docker Engine API's list,
// prune and events calls, and how its terms match. It is pure: it knows no
// object and no HTTP.
package filter

import (
	"encoding/json"
	"fmt"
	"regexp"
	"sort"
	"strings"
)

// Args maps a term ("label", "status", …) to the values that were given for
// it. Values of one term are alternatives, except for labels, which must all
// match.
type Args map[string][]string

// ParseJSON reads the query parameter "filters": a JSON object of either
// {"term": {"value": true}} (API 1.22 and later) or {"term": ["value"]}.
// An empty string is no filters.
func ParseJSON(s string) (Args, error) {
	if s == "" {
		return nil, nil
	}
	var sets map[string]map[string]bool
	if err := json.Unmarshal([]byte(s), &sets); err == nil {
		args := Args{}
		for term, values := range sets {
			for v, on := range values {
				if on {
					args[term] = append(args[term], v)
				}
			}
			sort.Strings(args[term])
		}
		return args, nil
	}
	var lists map[string][]string
	if err := json.Unmarshal([]byte(s), &lists); err != nil {
		return nil, fmt.Errorf("invalid filters %q: want a JSON object such as {\"label\":{\"a=b\":true}}: %w", s, err)
	}
	return Args(lists), nil
}

// Check reports the first term that is not among known.
func (a Args) Check(known ...string) error {
	terms := make([]string, 0, len(a))
	for term := range a {
		terms = append(terms, term)
	}
	sort.Strings(terms)
next:
	for _, term := range terms {
		for _, k := range known {
			if term == k {
				continue next
			}
		}
		return fmt.Errorf("invalid filter '%s'", term)
	}
	return nil
}

// Has reports whether the term was given.
func (a Args) Has(term string) bool { return len(a[term]) > 0 }

// Exact reports whether the term was not given or names value.
func (a Args) Exact(term, value string) bool {
	if !a.Has(term) {
		return true
	}
	for _, v := range a[term] {
		if v == value {
			return true
		}
	}
	return false
}

// Prefix reports whether the term was not given or one of its values is a
// prefix of value. Object IDs are filtered so.
func (a Args) Prefix(term, value string) bool {
	if !a.Has(term) {
		return true
	}
	for _, v := range a[term] {
		if strings.HasPrefix(value, v) {
			return true
		}
	}
	return false
}

// Match reports whether the term was not given or one of its values is equal
// to value or, as a regular expression, found in it. Names are filtered so.
func (a Args) Match(term, value string) bool {
	if !a.Has(term) {
		return true
	}
	for _, v := range a[term] {
		if v == value {
			return true
		}
		if re, err := regexp.Compile(v); err == nil && re.MatchString(value) {
			return true
		}
	}
	return false
}

// KV reports whether every value of the term, "key" or "key=value", is found
// in have. Labels are filtered so.
func (a Args) KV(term string, have map[string]string) bool {
	for _, want := range a[term] {
		k, v, valued := strings.Cut(want, "=")
		got, ok := have[k]
		if !ok || valued && got != v {
			return false
		}
	}
	return true
}

// Bool reads a term that takes true/false or 1/0. The second result says
// whether it was given.
func (a Args) Bool(term string) (value, given bool, err error) {
	if !a.Has(term) {
		return false, false, nil
	}
	for _, v := range a[term] {
		switch strings.ToLower(v) {
		case "1", "true":
			value = true
		case "0", "false":
			value = false
		default:
			return false, true, fmt.Errorf("invalid filter '%s=%s': want true or false", term, v)
		}
	}
	return value, true, nil
}
