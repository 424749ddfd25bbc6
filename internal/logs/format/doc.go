// SPDX-License-Identifier: Apache-2.0

// Package format writes a container's log: Docker's json-file and local
// formats, their rotation and compression. The shim links it, so it uses little
// memory, imports only the standard library, and never blocks the container:
// lines that do not fit on a full disk are dropped whole and counted.
//
// The package owns the log file at Config.Path and the rotated files beside it,
// and touches nothing else:
//
//	path          the active file
//	path.1        the newest rotated one, path.1.gz when compressed
//	path.N-1      the oldest one; N is Config.MaxFiles
//	path.tmp      the next active file for the moment of a rotation
//	path.gz.tmp   a compression in progress
//
// A rotated file never changes. After its compression the plain and the
// compressed file exist side by side for a moment. The header of the compressed
// one has the inode, time and size of the plain one (see Extra), by which a
// reader recognises that they are the same and keeps its place.
package format
