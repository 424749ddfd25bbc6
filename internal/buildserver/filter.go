// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"regexp"
	"slices"
	"strconv"

	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
)

// BuildKit finds the records to prune by filters in containerd's syntax, but knows
// neither a record's parents there, nor values of the fields that are true or false.
// Clients ask for these as parent==ID and shared==false. Such filters are therefore
// matched here, and BuildKit gets the IDs of the records.
var (
	ownTerm  = regexp.MustCompile(`(^|,)(parents?|inuse|shared|private|mutable|immutable)(==|!=|~=)`)
	flagTerm = regexp.MustCompile(`(^|,)(inuse|shared|private|mutable|immutable)(==|!=)"?(true|1|false|0)"?`)
)

// pruned translates options of a prune. Filters that BuildKit can't match are replaced by
// the IDs of the records that they match, and what it spares without reason is named by
// its ID as well. Options that match no record are left out.
func pruned(opts []client.PruneInfo, records []*client.UsageInfo, spared map[string]bool) ([]client.PruneInfo, error) {
	var out []client.PruneInfo
	var uncounted int64
	for _, r := range records {
		if spared[r.ID] {
			uncounted += max(r.Size, 0)
		}
	}
	for _, o := range opts {
		o = shifted(o, uncounted)
		own := slices.ContainsFunc(o.Filter, ownTerm.MatchString)
		if !own {
			out = append(out, o)
		}
		among := records
		switch limited := o.ReservedSpace != 0 || o.MaxUsedSpace != 0 || o.MinFreeSpace != 0; {
		case !own && (o.All || limited):
			continue
		case !own:
			among = slices.DeleteFunc(slices.Clone(records), func(r *client.UsageInfo) bool { return !spared[r.ID] })
		}
		if !o.All {
			among = slices.DeleteFunc(slices.Clone(among), kept)
		}
		ids, err := matching(o.Filter, among)
		if err != nil {
			return nil, err
		}
		if len(ids) > 0 {
			o.Filter, o.All = ids, true
			out = append(out, o)
		}
	}
	return out, nil
}

// shifted lowers the bounds of a prune by the bytes that BuildKit does not count, because
// it takes the records for shared. A bound may become negative, but not 0, which is
// none. BuildKit counts what it removes of these records, so that it ends where it
// should.
func shifted(o client.PruneInfo, uncounted int64) client.PruneInfo {
	if uncounted == 0 || o.ReservedSpace == 0 && o.MaxUsedSpace == 0 && o.MinFreeSpace == 0 {
		return o
	}
	lower := func(bound int64) int64 {
		if bound == uncounted {
			return -1
		}
		return bound - uncounted
	}
	if o.MaxUsedSpace != 0 {
		o.MaxUsedSpace = lower(o.MaxUsedSpace)
	} else if o.MinFreeSpace == 0 {
		o.MaxUsedSpace = lower(o.ReservedSpace)
	}
	o.ReservedSpace = lower(o.ReservedSpace)
	return o
}

// kept reports whether a prune without the option all leaves a record.
func kept(r *client.UsageInfo) bool {
	return r.Shared || r.RecordType == client.UsageRecordTypeInternal || r.RecordType == client.UsageRecordTypeFrontend
}

// share corrects which records are shared with images, and returns the IDs of those that
// BuildKit took for shared without reason. BuildKit compares the layers of a record with
// those of images, and is wrong in two ways. It leaves out layers that were never packed, so
// that a step that was never exported looks like the image below it. And it remembers the
// layers as they were when it was asked first, so that a step whose build was running then
// is never found in an image. of reports whether a record has the layers of an image.
func share(records []*client.UsageInfo, of func(*client.UsageInfo) bool) (wrong map[string]bool) {
	byID := map[string]*client.UsageInfo{}
	for _, r := range records {
		byID[r.ID] = r
	}
	shared := map[string]bool{}
	var mark func(id string)
	mark = func(id string) { // what an image is on is shared, too
		if r := byID[id]; r != nil && !shared[id] {
			shared[id] = true
			for _, p := range r.Parents {
				mark(p)
			}
		}
	}
	for _, r := range records {
		if of(r) {
			mark(r.ID)
		}
	}
	wrong = map[string]bool{}
	for _, r := range records {
		if r.Shared && !shared[r.ID] {
			wrong[r.ID] = true
		}
		r.Shared = shared[r.ID]
	}
	return wrong
}

// layersOf returns the digests of the packed layers of a record, from the lowest on. blob
// returns that of a record's own layer. ok is false if one was not packed, or if the record
// is on several others.
func layersOf(r *client.UsageInfo, byID map[string]*client.UsageInfo, blob func(id string) digest.Digest) (layers []digest.Digest, ok bool) {
	for r != nil {
		own := blob(r.ID)
		if own == "" || len(r.Parents) > 1 {
			return nil, false
		}
		layers = append(layers, own)
		if len(r.Parents) == 0 {
			slices.Reverse(layers)
			return layers, true
		}
		r = byID[r.Parents[0]]
	}
	return nil, false
}

// matching returns a filter for the ID of each record that one of the filters matches, or
// all if there are none.
func matching(all []string, records []*client.UsageInfo) (ids []string, _ error) {
	found, err := matches(all, records)
	for _, r := range found {
		ids = append(ids, "id=="+strconv.Quote(r.ID))
	}
	return ids, err
}

// matches returns the records that one of the filters matches, or all if there are none.
func matches(all []string, records []*client.UsageInfo) (found []*client.UsageInfo, _ error) {
	plain := make([]string, len(all))
	for i, text := range all {
		plain[i] = flagTerm.ReplaceAllStringFunc(text, func(term string) string {
			m := flagTerm.FindStringSubmatch(term)
			want := (m[3] == "==") == (m[4] == "true" || m[4] == "1")
			return m[1] + m[2] + map[bool]string{true: "==", false: "!="}[want] + "true"
		})
	}
	f, err := filters.ParseAll(plain...)
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		parents := r.Parents
		if len(parents) == 0 {
			parents = []string{""}
		}
		if slices.ContainsFunc(parents, func(parent string) bool { return f.Match(fieldsOf(r, parent)) }) {
			found = append(found, r)
		}
	}
	return found, nil
}

// fieldsOf are the fields of a record with one of its parents.
func fieldsOf(r *client.UsageInfo, parent string) filters.Adaptor {
	texts := map[string]string{"id": r.ID, "parent": parent, "parents": parent, "description": r.Description, "type": string(r.RecordType)}
	flags := map[string]bool{"inuse": r.InUse, "shared": r.Shared, "private": !r.Shared, "mutable": r.Mutable, "immutable": !r.Mutable}
	return filters.AdapterFunc(func(path []string) (string, bool) {
		if len(path) != 1 {
			return "", false
		}
		if set, ok := flags[path[0]]; ok {
			return strconv.FormatBool(set), set
		}
		text := texts[path[0]]
		return text, text != ""
	})
}
