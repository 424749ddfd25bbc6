// SPDX-License-Identifier: Apache-2.0

package network

import "testing"

// A network of a release that did not read these options keeps its others.
func TestWrongAnnouncementsOfAnEarlierReleaseAreTheDefault(t *testing.T) {
	got, err := parseTraits(map[string]string{optAnnouncements: "9", optAnnounceEvery: "200", optICC: "false"})
	if want := (Announcements{Times: 3, Interval: 200}); err != nil || got.announce != want || got.icc {
		t.Errorf("got %+v, %v", got, err)
	}
	if (Announcements{Times: 3, Interval: 1000}).recorded() != nil || (Announcements{}).recorded() == nil {
		t.Error("a record names the announcements if they are not the default")
	}
}
