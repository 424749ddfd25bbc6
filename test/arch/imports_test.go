// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"slices"
	"strings"
	"testing"
)

// room is a package and the packages below it.
type room struct {
	path string
	// sees are the rooms that it may import, in addition to itself.
	sees []string
	// only lists the modules that may be imported beside the standard library.
	// If it is nil, all are permitted.
	only []string
	// pure rooms take everything as an argument. They use no files, network,
	// context or clock.
	pure bool
}

var stdOnly = []string{}

// ground are the packages that all may import. They contain values, formats and
// rules, and import only the standard library.
var ground = []string{
	"internal/container", "internal/event", "internal/config", "internal/filter",
	"internal/shim/proto", "internal/logs/format",
	"internal/network/dump", "internal/network/ipam", "internal/network/nft", "internal/version",
	"internal/failpoint", "internal/timeline", "internal/lookup",
	"internal/beneath", "internal/osthread", // and system calls
	"internal/errs", "internal/durable", "internal/fdpass", "internal/beside",
}

// services each own one kind of resource on the host. They never import each
// other; engine combines them.
var services = []string{
	"internal/store", "internal/image", "internal/network", "internal/volume", "internal/archive",
	"internal/shim/client", "internal/logs/reader", "internal/handoff", "internal/eventserver",
}

// rooms are all packages. The longest path that fits a package is its room.
var rooms = []room{
	{path: "internal/container", only: stdOnly, pure: true},
	{path: "internal/filter", only: stdOnly, pure: true},
	{path: "internal/lookup", only: stdOnly, pure: true},
	{path: "internal/network/dump", only: []string{"golang.org/x/sys", "github.com/vishvananda/netlink", "github.com/mdlayher/netlink"}},
	{path: "internal/network/ipam", only: stdOnly, pure: true},
	{path: "internal/network/nft", only: stdOnly, pure: true},
	{path: "internal/version", only: stdOnly, pure: true},
	{path: "internal/config", only: stdOnly},
	{path: "internal/event", sees: []string{"internal/filter"}, only: stdOnly},
	{path: "internal/failpoint", only: stdOnly},
	{path: "internal/beneath", only: []string{"golang.org/x/sys"}},
	{path: "internal/durable", only: stdOnly},
	{path: "internal/fdpass", only: []string{"golang.org/x/sys"}},
	{path: "internal/osthread", only: []string{"golang.org/x/sys"}},
	{path: "internal/errs", only: []string{"github.com/containerd/errdefs"}},
	// Processes that the daemon starts and that outlive it.
	{path: "internal/beside", sees: []string{"internal/errs", "internal/fdpass", "internal/version"}, only: []string{"golang.org/x/sys"}},
	{path: "internal/timeline", sees: []string{"internal/event"}, only: stdOnly, pure: true},
	{path: "internal/logs/format", only: stdOnly},
	{path: "internal/shim/proto", only: stdOnly},
	// The name server in the shim. The daemon writes the files that it reads.
	{path: "internal/shim/names", only: []string{"golang.org/x/sys", "golang.org/x/net"}},
	// What every part of the shim may use.
	{path: "internal/shim/log", only: []string{"golang.org/x/sys"}},
	{path: "internal/shim/descriptor", only: []string{"golang.org/x/sys"}},
	// Joins a client's socket to a process, in the shim.
	{path: "internal/shim/stream", only: []string{"golang.org/x/sys"}},
	// What the kernel knows of a container's cgroups, and what a container's end removes from the host.
	{path: "internal/shim/cgroup", sees: []string{"internal/shim/log"}, only: []string{"golang.org/x/sys"}},
	{path: "internal/shim/teardown", sees: []string{"internal/shim/proto", "internal/shim/log"}, only: []string{"golang.org/x/sys"}},
	// How a shim's state gets over a re-exec.
	{path: "internal/shim/handover", only: []string{"golang.org/x/sys"}},
	// Published ports, in the shim.
	{
		path: "internal/shim/ports",
		sees: []string{"internal/shim/proto", "internal/shim/log", "internal/shim/descriptor", "internal/shim/stream"},
		only: []string{"golang.org/x/sys"},
	},

	{path: "internal/store", sees: ground},
	{path: "internal/image", sees: ground},
	{path: "internal/network", sees: append([]string{"internal/network/overlay", "internal/network/overlay/kernel", "internal/network/swarmlb", "internal/network/swarmlb/kernel"}, ground...)},
	{path: "internal/volume", sees: ground},
	{path: "internal/archive", sees: ground},
	{path: "internal/shim/client", sees: ground},
	{path: "internal/logs/reader", sees: ground},
	{path: "internal/handoff", sees: ground},
	{path: "internal/eventserver", sees: ground},

	// The shim's server must use little memory, so it imports no third-party
	// code except the system calls.
	{
		path: "internal/shim/server",
		sees: []string{
			"internal/shim/proto", "internal/shim/log", "internal/shim/descriptor", "internal/shim/stream", "internal/shim/ports",
			"internal/shim/cgroup", "internal/shim/teardown", "internal/shim/handover", "internal/shim/names",
			"internal/logs/format", "internal/version", "internal/beneath",
		},
		only: []string{"golang.org/x/sys", "golang.org/x/net/dns/dnsmessage"},
	},

	// Two packages that engine calls: oci makes runtime specifications, stats
	// reads counters.
	{path: "internal/engine/oci", sees: ground},
	{path: "internal/engine/rebind", sees: []string{"internal/osthread"}, only: []string{"golang.org/x/sys"}},
	{path: "internal/engine/stats", sees: append([]string{"internal/engine/oci"}, ground...)},
	// The files from which shims answer names.
	{path: "internal/engine/namefiles", sees: []string{"internal/shim/names"}, only: stdOnly},
	// What the daemon is and what it uses.
	{path: "internal/engine/sysinfo", sees: append([]string{"internal/engine/oci"}, ground...)},
	// The API's objects other than containers.
	{path: "internal/engine/objects", sees: append([]string{"internal/image", "internal/volume"}, ground...)},
	// The daemon's side of builds, what it lends to the process that builds, and that
	// process, which alone imports BuildKit.
	{path: "internal/build", sees: append([]string{"internal/build/stores", "internal/network"}, ground...)},
	{path: "internal/build/stores", sees: ground},
	{path: "internal/buildserver", sees: append([]string{"internal/build", "internal/build/stores", "internal/image", "internal/shim/names"}, ground...)},
	// Overlay networks and the load balancing of services: what the kernel needs, and
	// how it gets it.
	{path: "internal/network/overlay", only: stdOnly, pure: true},
	{path: "internal/network/overlay/kernel", sees: []string{"internal/network/overlay", "internal/network", "internal/network/dump", "internal/osthread"}},
	{path: "internal/network/swarmlb", only: stdOnly, pure: true},
	{path: "internal/network/swarmlb/kernel", sees: []string{"internal/network/swarmlb", "internal/network", "internal/network/dump", "internal/osthread"}},
	// The daemon's side of swarm mode, and the process that runs the node, which alone
	// imports swarmkit.
	{path: "internal/swarm", sees: ground},
	{path: "internal/swarmserver", sees: append([]string{
		"internal/swarm", "internal/api/wire", "internal/network/overlay/kernel",
		"internal/swarmserver/local", "internal/swarmserver/mesh", "internal/swarmserver/nets", "internal/swarmserver/task",
	}, ground...)},
	{path: "internal/swarmserver/local", sees: append([]string{"internal/shim/client"}, ground...)},
	{path: "internal/swarmserver/nets"},
	{path: "internal/swarmserver/mesh", sees: append([]string{"internal/network/overlay", "internal/network/overlay/kernel", "internal/network/swarmlb", "internal/network/swarmlb/kernel", "internal/shim/names"}, ground...)},
	{path: "internal/swarmserver/task", sees: append([]string{
		"internal/swarm", "internal/network/overlay", "internal/swarmserver/local", "internal/swarmserver/mesh", "internal/swarmserver/nets",
	}, ground...)},
	{path: "internal/buildserver/classic", only: stdOnly, pure: true},

	{path: "internal/engine", sees: append(append([]string{"internal/shim/names"}, services...), ground...)},

	// The packages that serve the API declare the interfaces that they need
	// from the engine.
	{path: "internal/api", sees: append([]string{"internal/engine", "internal/engine/objects", "internal/engine/sysinfo", "internal/swarm", "internal/network/overlay", "internal/api/wire"}, ground...)},
	{path: "internal/api/wire", sees: ground},

	// The command line reaches the daemon only over the API. Drawing the
	// answers is pure.
	{path: "internal/cli", sees: []string{"internal/timeline", "internal/shim/proto", "internal/version"}},

	{path: "cmd/holdfast", sees: []string{"internal/cli"}},
	{path: "cmd/holdfast-shim", sees: []string{"internal/shim/server", "internal/shim/handover", "internal/shim/proto", "internal/version"}, only: []string{"golang.org/x/sys"}},
	// The program that runs inside containers imports nothing of ours.
	{path: "cmd/holdfast-init", only: []string{}},
	{path: "cmd/holdfast-build", sees: []string{"internal/buildserver", "internal/beside"}},
	{path: "cmd/holdfast-swarm", sees: []string{"internal/swarmserver", "internal/beside"}},
	{path: "cmd/holdfastd", sees: append([]string{"internal/engine", "internal/engine/oci", "internal/engine/stats", "internal/api", "internal/api/wire", "internal/build", "internal/swarm"}, append(services, ground...)...)},

	// Tests may import everything.
	{path: "test"},
	// The model that judges the engine must not know the engine's own rules.
	{path: "test/storm/model", only: stdOnly, pure: true},
	{path: "test/swarm/model", only: stdOnly, pure: true},
}

func within(path, room string) bool {
	return path == room || strings.HasPrefix(path, room+"/")
}

func roomOf(path string) (room, bool) {
	var best room
	for _, r := range rooms {
		if within(path, r.path) && len(r.path) > len(best.path) {
			best = r
		}
	}
	return best, best.path != ""
}

func TestEveryPackageHasARoom(t *testing.T) {
	for _, p := range ownPackages(t) {
		if _, ok := roomOf(p.rel()); !ok {
			t.Errorf("%s belongs to no room: enter it in the table here, with what it may see", p.rel())
		}
	}
}

func TestImportsRunDownwards(t *testing.T) {
	for _, p := range ownPackages(t) {
		r, _ := roomOf(p.rel())
		for _, imported := range p.Imports {
			if !own(imported) {
				continue
			}
			rel := strings.TrimPrefix(imported, modulePath+"/")
			target, _ := roomOf(rel)
			if target.path == r.path {
				continue
			}
			// A room sees the rooms inside it; from outside each is named.
			if r.path != "test" && !within(target.path, r.path) && !slices.Contains(r.sees, target.path) {
				t.Errorf("%s imports %s: %s may see only itself and %s", p.rel(), rel, r.path, strings.Join(r.sees, ", "))
			}
		}
	}
}

func TestGroundRoomsImportOnlyTheStandardLibrary(t *testing.T) {
	for _, p := range ownPackages(t) {
		r, _ := roomOf(p.rel())
		if r.only == nil {
			continue
		}
		for _, imported := range p.Imports {
			if own(imported) || std(imported) {
				continue
			}
			if !slices.ContainsFunc(r.only, func(module string) bool { return within(imported, module) }) {
				t.Errorf("%s imports %s: it may import only the standard library %s", p.rel(), imported, strings.Join(r.only, " "))
			}
		}
	}
}

// A program that runs once per container, or once per command, would pay the
// costs of these packages every time.
var bans = []struct {
	binary string
	pkg    string // including the packages below it
	reason string
}{
	{"cmd/holdfast-shim", "net", "57 kB of PSS in each shim together with encoding/json, measured; sockets there are raw descriptors"},
	{"cmd/holdfast-shim", "net/http", "306 kB of PSS in each shim, measured, and nothing there speaks HTTP"},
	{"cmd/holdfast-shim", "crypto/tls", "nothing leaves the machine from a shim"},
	{"cmd/holdfast-shim", "google.golang.org/protobuf", "its registries are filled at start; frames are JSON"},
	{"cmd/holdfast-shim", "google.golang.org/grpc", "1.1 MB of PSS in each shim, measured"},
	{"cmd/holdfast-shim", "github.com/containerd", "frameworks for daemons, with gRPC and ttrpc below them"},
	{"cmd/holdfast-shim", "github.com/sirupsen/logrus", "the shim writes a few plain lines"},
	{"cmd/holdfast-shim", "log/slog", "the shim writes a few plain lines"},
	{"cmd/holdfast-shim", "text/template", "keeps every method of the program from being left out by the linker"},
	{"cmd/holdfast-shim", "regexp", "nothing there matches patterns, and compiled ones live for ever"},
	{"cmd/holdfast-shim", "internal/engine", "the shim must outlive every change of the engine"},
	{"cmd/holdfast", "github.com/containerd/containerd/v2", "the command line handles no images; 20 ms is all the time a start may take"},
	{"cmd/holdfast", "go.etcd.io/bbolt", "the command line has no database"},
	{"cmd/holdfast", "internal/engine", "the command line reaches the daemon over the API alone"},
	{"cmd/holdfastd", "github.com/docker/cli", "the daemon has no command line but its flags"},
	{"cmd/holdfastd", "internal/cli", "the daemon has no command line but its flags"},
	{"cmd/holdfastd", "github.com/moby/buildkit", "a daemon that never builds must not pay for it: builds are in a process of their own"},
	{"cmd/holdfastd", "internal/buildserver", "builds are in a process of their own"},
	{"cmd/holdfastd", "github.com/moby/swarmkit", "a daemon whose host is in no swarm must not pay for it: the node is a process of its own"},
	{"cmd/holdfastd", "internal/swarmserver", "the node of a swarm is a process of its own"},
	{"cmd/holdfast-swarm", "internal/engine", "the node uses the daemon over its socket, and the shims, and nothing of the engine"},
	{"cmd/holdfast-swarm", "github.com/containerd/containerd/v2", "the node handles no images"},
	{"cmd/holdfast", "github.com/moby/buildkit", "the command line builds by the API, or by the plugin buildx"},
	{"cmd/holdfastd", "internal/shim/server", "the shim is a binary of its own, so that it stays small"},
}

// TestOnlyTheBuildProcessImportsBuildKit bounds the code that depends on BuildKit's
// interfaces, which change with each of its releases.
func TestOnlyTheBuildProcessImportsBuildKit(t *testing.T) {
	for _, p := range ownPackages(t) {
		for _, imported := range p.Imports {
			if within(imported, "github.com/moby/buildkit") && p.rel() != "internal/buildserver" {
				t.Errorf("%s imports %s: only internal/buildserver may", p.rel(), imported)
			}
		}
	}
}

func TestBinariesDoNotLinkWhatIsBanned(t *testing.T) {
	for _, ban := range bans {
		for _, dep := range find(t, ban.binary).Deps {
			// The ban is on the package "net" itself. net/netip is not
			// affected.
			if dep == ban.pkg || ban.pkg != "net" && within(strings.TrimPrefix(dep, modulePath+"/"), ban.pkg) {
				t.Errorf("%s links %s: %s", ban.binary, dep, ban.reason)
			}
		}
	}
}
