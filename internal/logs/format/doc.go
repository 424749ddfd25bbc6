// Package format writes a container's log: Docker's json-file and local
// formats, their rotation and compression. The shim links it, so it is small
// in memory, imports nothing but the standard library and never blocks the
// container: what a full disk can't take is dropped by whole lines and counted.
//
// The package owns the log file at Config.Path and the rotated files beside
// it, and touches nothing else:
//
//	path          the active file
//	path.1        the newest rotated one, path.1.gz when compressed
//	path.N-1      the oldest one; N is Config.MaxFiles
//	path.tmp      the next active file for the moment of a rotation
//	path.gz.tmp   a compression in progress
//
// A rotated file never changes. While it is compressed both forms stand for
// a moment side by side; the header of the compressed one names the inode,
// time and size of the other (see Extra), so that a reader tells that they
// are the same and where it was.
package format
