// SPDX-License-Identifier: Apache-2.0

// Package filter parses the filters argument of the Docker Engine API's list,
// prune and events calls, and matches its terms. It is pure: it knows neither
// objects nor HTTP.
package filter

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"time"
)

// Args maps a term ("label", "status", …) to its values. The values of one term
// are alternatives, except for labels, which must all match.
type Args map[string][]string

// ParseJSON reads the query parameter "filters": a JSON object of either {"term":
// {"value": true}} (API 1.22 and later) or {"term": ["value"]}. An empty string
// means no filters.
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

// Check returns an error for the first term that is not in known.
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

// Prefix reports whether the term was not given or one of its values is a prefix
// of value. It is for object IDs.
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

// Match reports whether the term was not given or one of its values is equal to
// value or, as a regular expression, matches it. It is for names.
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

// KV reports whether every value of the term, "key" or "key=value", is in have.
// It is for labels.
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

// Bool returns the value of a term that is true/false or 1/0. given reports
// whether the term was given.
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

// Labels applies the terms label and label! to an object's labels.
func (a Args) Labels(labels map[string]string) bool {
	return a.KV("label", labels) && (!a.Has("label!") || !a.KV("label!", labels))
}

// Until reads the term until, a time stamp or a duration before now. Zero is no
// term. Times without a zone are of now's location.
func (a Args) Until(now time.Time) (time.Time, error) {
	if !a.Has("until") {
		return time.Time{}, nil
	}
	if len(a["until"]) > 1 {
		return time.Time{}, errors.New("more than one until filter specified")
	}
	s := a["until"][0]
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	if sec, err := strconv.ParseFloat(s, 64); err == nil {
		return time.Unix(0, int64(sec*float64(time.Second))), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("invalid filter 'until=%s': want a duration such as 24h or a time stamp", s)
}
