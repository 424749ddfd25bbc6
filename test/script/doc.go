// SPDX-License-Identifier: Apache-2.0

// Package script runs typical sessions with a container engine. Each script of
// testdata runs once with Docker's own client and once with holdfast. Other
// tests send requests over the bare API that clients don't send. Every test has
// a daemon of its own and examines the product only from outside, as its users
// do.
package script
