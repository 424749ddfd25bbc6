// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"fmt"
	"math/rand/v2"
)

// A container that is created without a name gets one from an adjective and a
// nautical noun.
var (
	nameHow = []string{
		"able", "ample", "bold", "brisk", "calm", "clear", "deft", "eager", "even", "fair",
		"fast", "fine", "firm", "fond", "glad", "grand", "hale", "hardy", "keen", "kind",
		"light", "lively", "loyal", "merry", "mild", "neat", "nimble", "noble", "patient", "plain",
		"prime", "proud", "quick", "quiet", "ready", "safe", "sharp", "snug", "sober", "solid",
		"sound", "spry", "stable", "steady", "stout", "strong", "sturdy", "sure", "swift", "taut",
		"tidy", "tight", "true", "trusty", "vivid", "warm", "whole", "wise", "worthy", "zesty",
	}
	nameWhat = []string{
		"anchor", "beacon", "becket", "bight", "binnacle", "bitt", "block", "bollard", "bowline", "bridle",
		"buoy", "cable", "capstan", "carrick", "chock", "cleat", "clew", "compass", "davit", "dock",
		"fairlead", "fender", "ferry", "galley", "gangway", "grapnel", "halyard", "harbor", "hawser", "hitch",
		"jetty", "kedge", "keel", "ketch", "lanyard", "lantern", "lashing", "lighthouse", "marlin", "mast",
		"mooring", "oarlock", "packet", "painter", "pier", "pilot", "quay", "reef", "rigging", "rudder",
		"sextant", "shackle", "sheet", "shroud", "splice", "spar", "stanchion", "tiller", "toggle", "winch",
	}
)

// newName reserves a random name for an ID.
func (r *index) newName(id string) (string, error) {
	for try := range 20 {
		name := nameHow[rand.IntN(len(nameHow))] + "_" + nameWhat[rand.IntN(len(nameWhat))]
		if try > 5 {
			name = fmt.Sprintf("%s%d", name, rand.IntN(1000))
		}
		if r.reserve(name, id) == nil {
			return name, nil
		}
	}
	name := id[:12]
	return name, r.reserve(name, id)
}
