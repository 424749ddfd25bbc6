// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/filter"
)

// Bool reads a switch as dockerd does: absent, "", 0, no, false and none are
// off; every other value is on.
func (r *Request) Bool(name string) bool { return r.BoolOr(name, false) }

// BoolOr is Bool with a default for an absent switch.
func (r *Request) BoolOr(name string, absent bool) bool {
	if !r.Query.Has(name) {
		return absent
	}
	switch strings.ToLower(strings.TrimSpace(r.Query.Get(name))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// Int reads a whole number. It returns nil if it is absent or empty.
func (r *Request) Int(name string) (*int, error) {
	s := r.Query.Get(name)
	if s == "" {
		return nil, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return nil, Invalid("invalid value %q for parameter %q: want a whole number", s, name)
	}
	return &n, nil
}

// Size reads a terminal's height and width, in character cells, from h and w.
func (r *Request) Size() (height, width uint, err error) {
	var n [2]uint
	for i, name := range []string{"height", "width"} {
		s := r.Query.Get(name[:1])
		v, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			return 0, 0, Invalid("invalid resize %s %q: %w", name, s, errors.Unwrap(err))
		}
		n[i] = uint(v)
	}
	return n[0], n[1], nil
}

// Filters reads the parameter "filters".
func (r *Request) Filters() (filter.Args, error) {
	args, err := filter.ParseJSON(r.Query.Get("filters"))
	if err != nil {
		return nil, Invalid("%w", err)
	}
	return args, nil
}

// Time reads a point in time: Unix seconds with up to nine decimals, or RFC
// 3339. Absent, empty and "0" give the zero time.
func (r *Request) Time(name string) (time.Time, error) {
	s := r.Query.Get(name)
	t, ok := parseTime(s)
	if !ok {
		return time.Time{}, Invalid("invalid value %q for parameter %q: want Unix seconds (1700000000.123456789) or a time such as 2006-01-02T15:04:05Z", s, name)
	}
	return t, nil
}

func parseTime(s string) (time.Time, bool) {
	if s == "" || s == "0" {
		return time.Time{}, true
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, true
	}
	whole, frac, _ := strings.Cut(s, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return time.Time{}, false
	}
	var nsec int64
	if frac != "" {
		if len(frac) > 9 {
			frac = frac[:9]
		}
		n, err := strconv.ParseUint(frac+strings.Repeat("0", 9-len(frac)), 10, 64)
		if err != nil {
			return time.Time{}, false
		}
		nsec = int64(n)
	}
	if strings.HasPrefix(whole, "-") {
		nsec = -nsec
	}
	if sec == 0 && nsec == 0 {
		return time.Time{}, true
	}
	return time.Unix(sec, nsec), true
}
