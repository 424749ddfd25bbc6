// SPDX-License-Identifier: Apache-2.0

// Package storm plays at random against a real daemon: clients that do what
// clients do, over HTTP and by the command lines, and faults beside them. What
// the daemon answers, and what is found after each round, must be something that
// the model (test/storm/model) allows. It needs root. docs/reliability.md says
// how to run it.
//
// A round is a plan that a seed stands for: a list of operations for each client
// and a list of faults. A client does its operations one after the other on the
// containers of its own slots, see the model's comment for why the judgement is
// sound although clients and faults are not in step. Streams (attach, logs -f,
// wait, long execs) go on beside the client until they end by themselves or their
// client vanishes. One goroutine does the faults, and starts the daemon again
// when it has died.
//
// After the round the daemon is started again, everything is compared with the
// model, all is removed, and nothing may be left.
package storm
