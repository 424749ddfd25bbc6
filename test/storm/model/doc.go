// SPDX-License-Identifier: Apache-2.0

// Package model says what an engine may answer. It owns the plan of a storm (the
// operations and faults that a seed stands for) and the containers as they may
// be. It is pure: it knows no files, network, clock or source of chance of its
// own, so that a seed always gives the same plan, and the same answers always
// the same judgement.
//
// # Sets of possible states
//
// A container is not one state but the set of all states that it may be in, a
// [Slot]. An operation that was answered moves each of them by the outcomes that
// [outcomes] allows for it, and those for which the answer was not allowed are
// dropped. If none remains, the answer is a violation. An operation without an
// answer (its client vanished, the daemon died) adds what it might have done and
// stays pending: it may still take effect later, because a daemon goes on without
// its client, and a shim without its daemon. Every observation drops the states
// that it contradicts, so that the set is small again after the next answer.
//
// # Who may know what
//
// Clients act at the same time. An exact judgement needs to know in which order
// things happened, so each client owns slots, and no other client touches the
// containers, volumes and networks of a slot: what a prune or a list takes is
// bounded by a label. Within a slot the order is that of its client, and the
// judgement is exact. What clients share, which is the names of [Plan.Shared], is
// judged by what holds in every order: at most one container has a name, and a
// request for it succeeds or is refused as a conflict.
//
// Faults are not attributed to operations. A fault is a window in time, and an
// operation that a window touches may also fail with an error (never with a
// wrong success), after which anything that it could have done is possible.
package model
