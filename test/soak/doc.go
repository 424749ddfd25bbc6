// SPDX-License-Identifier: Apache-2.0

// Package soak runs many containers for hours, with clients that come and go and a
// daemon that is killed, restarted and replaced now and then. It measures the daemon,
// the shims and the host meanwhile: nothing may grow (package judge). What the
// containers and clients see is compared with what must be. It needs root.
// docs/reliability.md says how to run it.
package soak
