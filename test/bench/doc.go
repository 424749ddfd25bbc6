// SPDX-License-Identifier: Apache-2.0

// Package bench measures the engine from outside, as users see it. It measures
// the dockerd and the OCI runtime of "make peer" beside it, podman where podman
// is installed, and buildkitd for builds. The engines take turns in one run, so that all of them
// meet the same load of the machine.
//
// Everything runs in a network namespace of its own, which the test process
// creates. No interface, rule or port of the host is touched, whichever engine
// is measured.
//
// "make bench" runs all measurements and writes docs/benchmarks.md. As a part
// of the tests the package only checks that the benchmark works.
package bench
