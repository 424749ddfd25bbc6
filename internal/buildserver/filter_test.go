// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
)

func TestFiltersThatBuildKitCantMatchFindTheirRecords(t *testing.T) {
	records := []*client.UsageInfo{
		{ID: "root", RecordType: client.UsageRecordTypeRegular, Shared: true},
		{ID: "child", RecordType: client.UsageRecordTypeRegular, Parents: []string{"root"}, InUse: true},
		{ID: "merged", RecordType: client.UsageRecordTypeRegular, Parents: []string{"child", "root"}, Description: "merge, of two"},
		{ID: "cache", RecordType: client.UsageRecordTypeCacheMount, Mutable: true},
	}
	for filter, want := range map[string]string{
		"parent==root":                   "child merged",
		`parent=="child"`:                "merged",
		"parents==none":                  "",
		"parent!=root":                   "root merged cache",
		"shared==true":                   "root",
		`shared=="1"`:                    "root",
		"shared==false":                  "child merged cache",
		"private==0":                     "root",
		"private!=false":                 "child merged cache",
		"inuse==true":                    "child",
		"inuse!=true":                    "root merged cache",
		"mutable==true":                  "cache",
		"type==regular,inuse==false":     "root merged",
		`parent==root,id~=^mer`:          "merged",
		`description~=two,private==true`: "merged",
		"private,parent==root":           "child merged",
	} {
		opts, err := pruned([]client.PruneInfo{{All: true, Filter: []string{filter}}}, records, nil)
		if err != nil {
			t.Errorf("%s: %v", filter, err)
			continue
		}
		var got []string
		for _, o := range opts {
			got = append(got, o.Filter...)
		}
		ids := strings.ReplaceAll(strings.ReplaceAll(strings.Join(got, " "), `id=="`, ""), `"`, "")
		if ids != want {
			t.Errorf("%s finds %q, want %q", filter, ids, want)
		}
	}
	var none []string
	for _, c := range []struct {
		o    client.PruneInfo
		want [][]string // the filters of what BuildKit is asked
	}{
		{client.PruneInfo{All: true, Filter: []string{"parent==child", "shared==true"}}, [][]string{{`id=="root"`, `id=="merged"`}}},
		{client.PruneInfo{All: true, Filter: []string{"type==regular"}}, [][]string{{"type==regular"}}},
		{client.PruneInfo{All: true, Filter: []string{"parent==none"}}, nil},
		{client.PruneInfo{All: true}, [][]string{none}},
		// Without all, what is shared stays, and what only seems to be does not.
		{client.PruneInfo{Filter: []string{"parent!=none"}}, [][]string{{`id=="child"`, `id=="merged"`, `id=="cache"`}}},
		{client.PruneInfo{}, [][]string{none, {`id=="merged"`}}},
		{client.PruneInfo{Filter: []string{"type==exec.cachemount"}}, [][]string{{"type==exec.cachemount"}}},
		{client.PruneInfo{ReservedSpace: 1}, [][]string{none}},
	} {
		opts, err := pruned([]client.PruneInfo{c.o}, records, map[string]bool{"merged": true})
		if err != nil {
			t.Errorf("%+v: %v", c.o, err)
		}
		var got [][]string
		for _, o := range opts {
			got = append(got, o.Filter)
		}
		if !slices.EqualFunc(got, c.want, slices.Equal) {
			t.Errorf("%+v: %q, want %q", c.o, got, c.want)
		}
	}
	if _, err := pruned([]client.PruneInfo{{Filter: []string{"parent==a b"}}}, records, nil); err == nil {
		t.Error("a filter that can't be parsed is accepted")
	}
}

func TestRecordsWithTheLayersOfAnImageAreShared(t *testing.T) {
	records := []*client.UsageInfo{
		{ID: "base", Shared: true},
		{ID: "unpacked", Parents: []string{"base"}, Shared: true},
		{ID: "on it", Parents: []string{"unpacked"}, Shared: true},
		{ID: "middle", Parents: []string{"base"}, Shared: true},
		{ID: "exported", Parents: []string{"middle"}, Shared: true},
		{ID: "asked for too early", Parents: []string{"middle"}},
		{ID: "private", Parents: []string{"base"}},
		{ID: "merged", Parents: []string{"base", "private"}},
		{ID: "on what is gone", Parents: []string{"gone"}},
	}
	byID := map[string]*client.UsageInfo{}
	for _, r := range records {
		byID[r.ID] = r
	}
	blob := func(id string) digest.Digest {
		if id == "unpacked" {
			return ""
		}
		return digest.Digest(id)
	}
	images := [][]digest.Digest{{"base"}, {"base", "middle", "exported"}, {"base", "middle", "asked for too early"}}
	wrong := share(records, func(r *client.UsageInfo) bool {
		layers, ok := layersOf(r, byID, blob)
		return ok && slices.ContainsFunc(images, func(i []digest.Digest) bool { return slices.Equal(i, layers) })
	})
	var shared []string
	for _, r := range records {
		if r.Shared {
			shared = append(shared, r.ID)
		}
	}
	if got := slices.Sorted(maps.Keys(wrong)); !slices.Equal(got, []string{"on it", "unpacked"}) || !slices.Equal(shared, []string{"base", "middle", "exported", "asked for too early"}) {
		t.Errorf("wrongly shared are %q, shared %q", got, shared)
	}
}

func TestBoundsOfACollectionAreLoweredByWhatIsNotCounted(t *testing.T) {
	records := []*client.UsageInfo{{ID: "a", Size: 30}, {ID: "b", Size: 70}, {ID: "not packed", Size: 50}}
	spared := map[string]bool{"not packed": true}
	for _, c := range []struct {
		o                       client.PruneInfo
		reserved, used, minfree int64
	}{
		{client.PruneInfo{MaxUsedSpace: 80}, -50, 30, 0},
		{client.PruneInfo{MaxUsedSpace: 20}, -50, -30, 0},
		{client.PruneInfo{MaxUsedSpace: 50, ReservedSpace: 60}, 10, -1, 0},
		{client.PruneInfo{ReservedSpace: 20}, -30, -30, 0},
		{client.PruneInfo{ReservedSpace: 90}, 40, 40, 0},
		{client.PruneInfo{MinFreeSpace: 7}, -50, 0, 7},
		{client.PruneInfo{All: true}, 0, 0, 0},
	} {
		got, err := pruned([]client.PruneInfo{c.o}, records, spared)
		if err != nil || got[0].ReservedSpace != c.reserved || got[0].MaxUsedSpace != c.used || got[0].MinFreeSpace != c.minfree {
			t.Errorf("%+v becomes %+v, %v", c.o, got, err)
		}
	}
}
