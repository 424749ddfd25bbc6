// Package bench measures the engine from outside, as its users see it, and
// beside it dockerd, podman and the bare OCI runtime where they are installed:
// pair by pair in one run, so that all of them see the same machine.
//
// Everything runs in a network namespace of its own, which the test process
// makes for itself: no link, rule or port of the host is touched, whichever
// engine is measured.
//
// "make bench" runs it in full and writes docs/benchmarks.md. As a part of the
// tests it only shows that it works.
package bench
