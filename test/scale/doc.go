// SPDX-License-Identifier: Apache-2.0

// Package scale starts the daemon over many running containers, and over hosts
// that others have changed meanwhile.
package scale
