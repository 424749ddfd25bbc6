// SPDX-License-Identifier: Apache-2.0

package swarmserver

import (
	"maps"
	"slices"
	"testing"

	"holdfast/internal/api/swarm"
)

func TestProcessServesWhatTheDaemonPasses(t *testing.T) {
	served := slices.Sorted(maps.Keys((&server{}).operations()))
	passed := slices.Sorted(slices.Values(swarm.Operations))
	if !slices.Equal(served, passed) {
		t.Errorf("served %v\npassed %v", served, passed)
	}
}
