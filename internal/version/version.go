// Package version says which build this is. The Makefile stamps the variables
// with the linker; a binary that was built without it says "dev". Every binary
// links this package, so it imports nothing.
package version

var (
	// Version is the release, as in "0.1.0" or "0.1.0-12-gabcdef0".
	Version = "dev"
	// Commit is the short hash of the source revision.
	Commit = "unknown"
	// BuildTime is in RFC 3339, UTC; the time of the commit, so that equal
	// sources give equal binaries.
	BuildTime = "unknown"
)
