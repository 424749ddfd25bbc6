// SPDX-License-Identifier: Apache-2.0

// Package handoff owns what one daemon process holds for the next: the lock of
// the data root and the exec root, the listening sockets, and the connection to
// the service manager. All of it is held by descriptors, so it can be passed to a
// successor as descriptors. A flock belongs to the open file and not to the
// process, and a listening socket keeps its backlog whichever process accepts
// from it.
//
// The package knows neither containers nor the protocols on the sockets.
package handoff
