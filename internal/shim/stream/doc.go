// SPDX-License-Identifier: Apache-2.0

// Package stream joins a client's socket to a process or to the output of a log: for
// attached clients, exec sessions, followers of a log and clients that wait. It also
// defines the steps in which a shim moves bytes.
//
// A Session has the client's input, one writer for its output, and the state of its
// life. Either end may go first, at any moment; State.Next is the table of what
// happens then, and testdata/life.golden shows it:
//
//	which end goes first       what happens
//	-------------------------  -------------------------------------------------
//	client: half-closes        the process gets the bytes sent, then EOF; output
//	                           continues until the client closes the connection
//	client: closes or resets   the same; writes of output then fail, and output
//	                           is discarded, but input is read to its end. Bytes
//	                           that the process does not read are kept for
//	                           Patience only
//	client: detach keys        only with a terminal: the process gets the bytes
//	                           before them; output ends once the detach is
//	                           recorded
//	process: closes its input  what the client sends is read and discarded, so
//	                           that the client neither blocks nor is reset
//	process: exits             the client gets all output, then EOF; what it still
//	                           sends is discarded until it closes its side, or
//	                           EndTime has passed, or EndBytes have arrived
//	shim: re-exec              every byte is in the client's socket, in the
//	                           process's pipe or in the session's Image; see Motion
//
// The transcripts in testdata play all of these, each also with a re-exec before
// every line.
//
// No loop spins: after any failed read, for whatever reason, nothing is read from
// that end again.
//
// The package starts goroutines, but no process. It links only what the shim may
// link: system calls and the standard library without net.
package stream
