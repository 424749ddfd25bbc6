// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"path"
	"slices"
	"strconv"
	"strings"

	moby "github.com/moby/moby/api/types/container"
	mobynet "github.com/moby/moby/api/types/network"

	"holdfast/internal/errs"
	"holdfast/internal/filter"
)

// listFilter is what the filters of a list of containers were parsed to.
type listFilter struct {
	filter.Args
	networks        Networks
	codes           map[int]bool // exit codes; empty if all match
	before, since   *view        // nil if not given
	ancestors       map[string]bool
	publish, expose func(mobynet.Port) bool // nil if not given
	none            bool                    // nothing matches
}

// parse validates the filters that name values of enums, and parses exit codes.
func (l *listFilter) parse() error {
	for _, s := range l.Args["status"] {
		if err := moby.ValidateContainerState(moby.ContainerState(s)); err != nil {
			return errs.Invalid("invalid filter 'status=%s': %v", s, err)
		}
	}
	for _, s := range l.Args["health"] {
		if err := moby.ValidateHealthStatus(moby.HealthStatus(s)); err != nil {
			return errs.Invalid("invalid filter 'health=%s': %v", s, err)
		}
	}
	l.codes = map[int]bool{}
	for _, s := range l.Args["exited"] {
		n, err := strconv.Atoi(s)
		if err != nil {
			return errs.Invalid("invalid filter 'exited=%s': want an exit code", s)
		}
		l.codes[n] = true
	}
	return nil
}

// portFilter returns a predicate for the ports that a filter names; nil if there is no
// such filter.
func portFilter(f filter.Args, term string) (func(mobynet.Port) bool, error) {
	if !f.Has(term) {
		return nil, nil
	}
	var ranges []mobynet.PortRange
	for _, s := range f[term] {
		r, err := mobynet.ParsePortRange(s)
		if err != nil {
			return nil, errs.Invalid("invalid filter '%s=%s': %v", term, s, err)
		}
		ranges = append(ranges, r)
	}
	return func(p mobynet.Port) bool {
		return slices.ContainsFunc(ranges, func(r mobynet.PortRange) bool {
			return r.Proto() == p.Proto() && r.Start() <= p.Num() && p.Num() <= r.End()
		})
	}, nil
}

// match reports whether a container matches all filters.
func (l *listFilter) match(v *view) bool {
	st := apiState(v)
	return l.matchContainer(v, st) && l.matchHealth(st) && l.matchOrigin(v) && l.matchNetwork(v)
}

func (l *listFilter) matchContainer(v *view, st *moby.State) bool {
	f := l.Args
	switch {
	case !f.Prefix("id", v.spec.ID),
		f.Has("name") && !f.Match("name", "/"+v.spec.Name) && !f.Match("name", v.spec.Name),
		!f.Labels(v.req.Config.Labels),
		!f.Exact("status", string(st.Status)),
		len(l.codes) > 0 && (!l.codes[st.ExitCode] || st.Running || !v.hasRun()),
		l.before != nil && !v.spec.Created.Before(l.before.spec.Created),
		l.since != nil && !v.spec.Created.After(l.since.spec.Created),
		l.none:
		return false
	}
	return true
}

func (l *listFilter) matchHealth(st *moby.State) bool {
	if !l.Has("health") {
		return true
	}
	status := moby.NoHealthcheck
	if st.Health != nil {
		status = st.Health.Status
	}
	return l.Exact("health", string(status))
}

// matchOrigin matches what the container was created with: isolation, image, volumes.
func (l *listFilter) matchOrigin(v *view) bool {
	// The default is the only isolation on Linux; "" is its other name.
	if l.Has("isolation") && !l.Exact("isolation", string(moby.IsolationDefault)) && !l.Exact("isolation", "") {
		return false
	}
	if l.ancestors != nil && !l.ancestors[v.spec.Image.ID] && !l.ancestors[v.req.Config.Image] && !l.ancestors[v.spec.Image.Manifest] {
		return false
	}
	wanted := l.Args["volume"]
	return !l.Has("volume") || slices.ContainsFunc(v.mounts, func(m mountPoint) bool {
		return slices.Contains(wanted, m.Name) && m.Name != "" || slices.Contains(wanted, path.Clean(m.Destination)) || slices.Contains(wanted, m.Source)
	})
}

func (l *listFilter) matchNetwork(v *view) bool {
	if l.Has("network") || l.publish != nil {
		ns := networkSettings(l.networks, v)
		if l.Has("network") && !onNetwork(ns, l.Args["network"]) {
			return false
		}
		if l.publish != nil && publishes(ns.Ports, l.publish) {
			return true
		}
	}
	if l.expose != nil {
		for p := range v.req.Config.ExposedPorts {
			if l.expose(p) {
				return true
			}
		}
	}
	// A match of publish or of expose is sufficient.
	return l.publish == nil && l.expose == nil
}

// onNetwork reports whether one of a container's networks has one of the names, or an
// ID that begins with one of them.
func onNetwork(ns *moby.NetworkSettings, wanted []string) bool {
	for name, ep := range ns.Networks {
		for _, want := range wanted {
			if name == want || ep.NetworkID != "" && strings.HasPrefix(ep.NetworkID, want) {
				return true
			}
		}
	}
	return false
}

// publishes reports whether one of the published host ports matches.
func publishes(ports mobynet.PortMap, match func(mobynet.Port) bool) bool {
	for p, bindings := range ports {
		for _, b := range bindings {
			if host, err := mobynet.ParsePort(b.HostPort + "/" + string(p.Proto())); err == nil && match(host) {
				return true
			}
		}
	}
	return false
}
