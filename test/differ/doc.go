// SPDX-License-Identifier: Apache-2.0

// Package differ runs the same jobs on Holdfast and on a current dockerd, and
// compares the answers: output, exit status, API answers, the inspect of every
// object that is left, and events. The jobs are text files in testdata;
// docs/differ.md describes how to write one.
//
// "make differ" runs all of them; the normal tests run a sample. Both engines
// use the same runc and run in network namespaces of their own, so the same
// addresses and ports are free for both.
package differ
