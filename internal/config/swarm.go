// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"strconv"
	"strings"
)

// GenericResource is something of which a host says that it has it, for the scheduler
// of swarm mode: so many of a kind, or one of a kind that has a name.
type GenericResource struct {
	Kind  string
	Name  string // empty: Count of them, without names
	Count int64
}

// GenericResources parses KIND=COUNT and KIND=NAME, of which one string may have
// several with commas between them. A kind has either one count or names.
func GenericResources(list []string) ([]GenericResource, error) {
	var out []GenericResource
	first := map[string]GenericResource{}
	for _, term := range strings.FieldsFunc(strings.Join(list, ","), func(r rune) bool { return r == ',' }) {
		kind, value, ok := strings.Cut(strings.TrimSpace(term), "=")
		if !ok || kind == "" || value == "" || strings.ContainsAny(kind, " \t") {
			return nil, fmt.Errorf("invalid generic resource %q: want KIND=COUNT or KIND=NAME", term)
		}
		r := GenericResource{Kind: kind, Name: value}
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			if n < 0 {
				return nil, fmt.Errorf("invalid generic resource %q: want a count of 0 or more", term)
			}
			r = GenericResource{Kind: kind, Count: n}
		}
		if before, twice := first[kind]; twice && (before.Name == "" || r.Name == "") {
			return nil, fmt.Errorf("invalid generic resources %q: the kind %s has a count and something else: give it one count, or only names", strings.Join(list, ","), kind)
		}
		first[kind] = r
		out = append(out, r)
	}
	return out, nil
}

func checkSwarm(c *Config) error {
	if _, err := GenericResources(c.NodeGenericResources); err != nil {
		return err
	}
	for _, n := range []struct {
		key   string
		value int
	}{{"swarm-raft-heartbeat-tick", c.SwarmHeartbeatTick}, {"swarm-raft-election-tick", c.SwarmElectionTick}} {
		if n.value < 0 {
			return fmt.Errorf("invalid %s: %d: want 0 for the default, or more", n.key, n.value)
		}
	}
	// Without a heartbeat in time, each follower would stand for election.
	if beat := max(1, c.SwarmHeartbeatTick); c.SwarmElectionTick != 0 && c.SwarmElectionTick <= beat {
		return fmt.Errorf("invalid swarm-raft-election-tick: %d: want more than the heartbeat tick, which is %d", c.SwarmElectionTick, beat)
	}
	return nil
}
