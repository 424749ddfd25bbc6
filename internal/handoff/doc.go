// Package handoff owns what one daemon process holds for the next: the lock of
// the data root and the exec root, the listening sockets, and the word to the
// service manager. All of it lives in descriptors, so that it can be given to
// a successor as descriptors: a flock belongs to the open file and not to the
// process, and a listening socket keeps its backlog whoever accepts from it.
//
// It knows nothing of containers and of what is served on the sockets.
package handoff
