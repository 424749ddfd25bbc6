package engine

import "holdfast/internal/filter"

// ImageListOptions are the arguments of GET /images/json.
type ImageListOptions struct {
	All        bool // images without a name too
	Manifests  bool // fill Summary.Manifests
	SharedSize bool // fill Summary.SharedSize, which is -1 otherwise
	Filters    filter.Args
}

// DiskUsageOptions say for which kinds of object GET /system/df wants figures;
// a kind that isn't asked for stays nil in the answer. Items are always listed:
// the API drops them for clients that want sums only.
type DiskUsageOptions struct {
	Containers, Images, Volumes, BuildCache bool
}
