// SPDX-License-Identifier: Apache-2.0

// Package server is the shim: the process beside one container that does all a
// running container needs, so that the container does not depend on a daemon.
//
// It owns the container's process (as its subreaper), stdio or terminal, log,
// exec sessions, attached clients, health checks, restart policy, the sockets
// that reserve its host ports, the record of all this in the run directory, and
// the teardown at the end. It must not touch anything of another container, and
// it never sends a request to a daemon.
//
// Start reading at supervise.go, which is the container's life, and launch.go, how a
// run begins. shim.go has the parts. Each of them has its own lock:
//
//	supervise.go  the container's life: runs, restarts, the end (supervisor)
//	launch.go     the start of a run
//	stop.go       signals, and stops in progress (stops)
//	verbs.go      pause, resume and update (verbs)
//	restart.go    the restart policy, pure
//	health.go     health checks of a run (healthChecker)
//	join.go       namespaces of other containers
//	reaper.go     the only place that reaps child processes, registered or not
//	runtime.go    calls of the OCI runtime; signals.go the shim's own signals
//
//	serve.go      connections and clients together (server)
//	conn.go       one connection; calls.go the methods that it may call
//	state.go      State, its file, waiting for changes (record)
//	journal.go    the journal file
//	names.go      the name server; ports.go the published ports
//
//	stdio.go      FIFOs and terminals, and reading the container's output (output)
//	socket.go     Unix sockets, and the terminal that comes over one
//	attach.go     attached clients
//	exec.go       exec sessions; package stream joins the sockets of both to processes
//	ledger.go     output that is read but not logged yet, for the next shim
//	waiters.go    clients that wait for the container's end
//	followers.go  clients that follow the log
//
//	adopt.go      adopting the container of a shim that was killed
//	upgrade.go    re-exec of another binary in the same process
//	quiesce.go    bringing all streams and operations to a stop before it
//	handover.go   the state that it gets: a section of each part, which lies in the
//	              part's file or in one named after it (exec_handover.go)
//
// Rooms of their own, which know nothing of this package: stream, ports, handover,
// cgroup (frozen, OOM kills), teardown, names, proto; log and descriptor below them.
//
// Order of locks: motion (quiesce.go), then record.mu, then output.mu or
// execs.mu, then a client's or a connection's. verbs.mu is taken before all of
// these but motion. supervisor.mu, stops.mu and Shim.mu are taken while none of
// them is held (except motion while the state is saved), and only for short sections.
//
// The binary must stay small, so the package links no net, net/http,
// crypto/tls, protobuf, gRPC or log/slog.
package server
