// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"strconv"
	"strings"
)

// Version is a version of the Engine API, such as 1.44.
type Version struct{ Major, Minor int }

// ParseVersion reads "1.44". Further components ("1.44.1") are dropped, because
// the API never had any.
func ParseVersion(s string) (Version, error) {
	parts := strings.Split(s, ".")
	if len(parts) < 2 {
		return Version{}, fmt.Errorf("invalid API version %q: want MAJOR.MINOR, such as 1.44", s)
	}
	var n [2]int
	for i, part := range parts {
		v, err := strconv.ParseUint(part, 10, 16)
		if err != nil {
			return Version{}, fmt.Errorf("invalid API version %q: want MAJOR.MINOR, such as 1.44", s)
		}
		if i < 2 {
			n[i] = int(v)
		}
	}
	return Version{n[0], n[1]}, nil
}

// MustParseVersion is ParseVersion for constants.
func MustParseVersion(s string) Version {
	v, err := ParseVersion(s)
	if err != nil {
		panic(err)
	}
	return v
}

// Less reports whether v is older than o.
func (v Version) Less(o Version) bool {
	return v.Major < o.Major || v.Major == o.Major && v.Minor < o.Minor
}

// Before reports whether v is older than 1.minor. So far every change of the
// API has a new minor number.
func (v Version) Before(minor int) bool { return v.Less(Version{1, minor}) }

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }
