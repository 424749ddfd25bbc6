// Package server is the shim: the process that stands beside one container
// and keeps everything that a running container needs, so that no daemon is
// needed.
//
// It owns the container's process (as its subreaper), stdio or terminal, log,
// exec sessions, attached clients, health checks, restart policy, the sockets
// that hold its host ports, the record of all this in the run directory, and
// what is to be undone at the end. It may not touch anything of another
// container, and it never asks a daemon for anything.
//
// The way through the code is supervise.go: launch, wait, ended, finish. Around
// it, each with its own lock and none that calls back:
//
//	serve.go      connections, requests, the socket
//	state.go      State, its file, who waits for a change (record)
//	journal.go    the journal file
//	reaper.go     the only place that waits for child processes
//	runtime.go    calls of the OCI runtime
//	stdio.go      FIFOs and terminals, and what is read from them (output)
//	socket.go     Unix sockets, and the terminal that comes over one
//	attach.go     attached clients; backlog.go what they have not yet read
//	exec.go       exec sessions
//	health.go     health checks
//	restart.go    the restart policy, pure
//	ledger.go     what was read and is not in the log yet, for the next shim
//	adopt.go      the container of a shim that was killed
//	still.go      how all that moves is brought to a stop
//	upgrade.go    another binary in the same process; image.go what it is given
//	ports.go      forwarding of what the kernel can't translate
//	teardown.go   netlink batches, unmounts, removals
//
// Order of locks: motion (still.go), then record.mu, then output.mu or
// execs.mu, then a client's or a connection's. Shim.mu is taken alone or under
// none of these, and only for moments.
//
// The binary must stay small, so the package links no net, net/http,
// crypto/tls, protobuf, gRPC or log/slog.
package server
