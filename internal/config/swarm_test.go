// SPDX-License-Identifier: Apache-2.0

package config

import (
	"slices"
	"strings"
	"testing"
)

func TestGenericResources(t *testing.T) {
	got, err := GenericResources([]string{"gpu=UUID1,gpu=UUID2", "ssd=3"})
	want := []GenericResource{{"gpu", "UUID1", 0}, {"gpu", "UUID2", 0}, {"ssd", "", 3}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v %v", got, err)
	}
	for in, why := range map[string]string{
		"gpu": "want KIND=COUNT", "=3": "want KIND=COUNT", "gpu=": "want KIND=COUNT", "a b=1": "want KIND=COUNT", "gpu=-1": "0 or more",
		"gpu=1,gpu=2": "has a count", "gpu=A,gpu=2": "has a count", "gpu=2,gpu=A": "has a count",
	} {
		if _, err := GenericResources([]string{in}); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func TestRaftTicksThatCannotWorkAreRefused(t *testing.T) {
	for _, c := range []struct {
		beat, election int
		ok             bool
	}{{0, 0, true}, {0, 10, true}, {2, 3, true}, {0, 1, false}, {3, 3, false}, {-1, 0, false}, {0, -5, false}} {
		if err := checkSwarm(&Config{SwarmHeartbeatTick: c.beat, SwarmElectionTick: c.election}); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
