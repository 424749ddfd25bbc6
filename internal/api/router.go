// SPDX-License-Identifier: Apache-2.0

package api

import (
	"strings"

	"holdfast/internal/api/wire"
)

// router finds the route for a path. Routes with the same first segment are
// tried in the order in which they were added, so fixed paths must be added
// before those with variables in the same place.
type router struct {
	byFirst map[string][]entry
}

type entry struct {
	route    wire.Route
	segments []string
}

func newRouter(routes []wire.Route) *router {
	rt := &router{byFirst: map[string][]entry{}}
	for _, route := range routes {
		segments := split(route.Path)
		rt.byFirst[segments[0]] = append(rt.byFirst[segments[0]], entry{route, segments})
	}
	return rt
}

// find returns the route for a request and its variables.
func (rt *router) find(method, path string) (wire.Route, map[string]string, bool) {
	segments := split(path)
	for _, e := range rt.byFirst[segments[0]] {
		if e.route.Method != method {
			continue
		}
		if vars, ok := match(e.segments, segments); ok {
			return e.route, vars, true
		}
	}
	return wire.Route{}, nil, false
}

func split(path string) []string { return strings.Split(strings.TrimPrefix(path, "/"), "/") }

// match compares a path with a pattern. At most one {name...} matches all
// remaining segments, and at least one. No variable is empty.
func match(pattern, path []string) (map[string]string, bool) {
	var vars map[string]string
	set := func(name, value string) bool {
		if value == "" {
			return false
		}
		if vars == nil {
			vars = make(map[string]string, 1)
		}
		vars[name] = value
		return true
	}
	for i, want := range pattern {
		if name, ok := variable(want); ok {
			if name, ok := strings.CutSuffix(name, "..."); ok {
				after := pattern[i+1:]
				n := len(path) - i - len(after)
				if n < 1 || !set(name, strings.Join(path[i:i+n], "/")) {
					return nil, false
				}
				rest, ok := match(after, path[i+n:])
				for k, v := range rest {
					vars[k] = v
				}
				return vars, ok
			}
			if i >= len(path) || !set(name, path[i]) {
				return nil, false
			}
			continue
		}
		if i >= len(path) || path[i] != want {
			return nil, false
		}
	}
	return vars, len(path) == len(pattern)
}

func variable(segment string) (string, bool) {
	if len(segment) < 3 || segment[0] != '{' || segment[len(segment)-1] != '}' {
		return "", false
	}
	return segment[1 : len(segment)-1], true
}

// splitVersion cuts the version from the front of a path. ok is false if there
// is none. Both parts may begin with several slashes, because clients join a
// base URL that ends with a slash and a path that begins with one. rest begins
// with one slash.
func splitVersion(path string) (version, rest string, ok bool) {
	path = "/" + strings.TrimLeft(path, "/")
	s, found := strings.CutPrefix(path, "/v")
	if !found {
		return "", path, false
	}
	version, rest, found = strings.Cut(s, "/")
	if !found || version == "" || strings.Trim(version, "0123456789.") != "" {
		return "", path, false
	}
	return version, "/" + strings.TrimLeft(rest, "/"), true
}
