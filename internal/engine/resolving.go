package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	moby "github.com/moby/moby/api/types/container"
	mobynet "github.com/moby/moby/api/types/network"

	"holdfast/internal/engine/oci"
	"holdfast/internal/network"
	"holdfast/internal/shim/names"
	"holdfast/internal/shim/proto"
)

// Names resolve in the containers' shims, from files that are renamed into
// place here: one for each network with all who are on it, and one for each
// container with what it sees.

// nameFiles writes the networks' files.
type nameFiles struct {
	mu      sync.Mutex // held while the files are made of the containers
	written map[string][]byte
	known   bool // all containers are; see knowNames
}

// userNetwork: names resolve on it.
func userNetwork(name string) bool {
	switch name {
	case mobynet.NetworkBridge, mobynet.NetworkHost, mobynet.NetworkNone, mobynet.NetworkDefault:
		return false
	}
	return true
}

// hasUserNetwork: the container asked for one. Most don't, and cost no more
// than this.
func hasUserNetwork(v *view) bool {
	if v.req.HostConfig.NetworkMode.IsContainer() {
		return false
	}
	if userNetwork(v.req.HostConfig.NetworkMode.NetworkName()) {
		return true
	}
	if v.req.Networking != nil {
		for name := range v.req.Networking.EndpointsConfig {
			if userNetwork(name) {
				return true
			}
		}
	}
	return false
}

func (e *Engine) namesDir() string { return filepath.Join(e.config.Load().ExecRoot, "names") }

func (e *Engine) namesPath(networkID string) string {
	return filepath.Join(e.namesDir(), networkID+".json")
}

func (e *Engine) viewPath(id string) string { return filepath.Join(e.store.RunDir(id), "names.json") }

// place is a container on a network of the user's own, as others find it.
type place struct {
	network, name string // the network's ID and name
	member        names.Member
}

// placesOf are a container's places. One that does not run has no addresses.
func (e *Engine) placesOf(v *view) []place {
	if !hasUserNetwork(v) {
		return nil
	}
	var out []place
	for name, es := range e.networkSettings(v).Networks {
		if !userNetwork(name) || es.NetworkID == "" {
			continue
		}
		p := place{network: es.NetworkID, name: name, member: names.Member{Name: v.spec.Name, Names: dnsNames(v, es)[1:]}}
		if v.state.Alive() {
			for _, addr := range []netip.Addr{es.IPAddress, es.GlobalIPv6Address} {
				if addr.IsValid() {
					p.member.Addresses = append(p.member.Addresses, addr.String())
				}
			}
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b place) int { return strings.Compare(a.network, b.network) })
	return out
}

// updateNames makes the networks' files what the containers say. Files that are
// right are left alone.
func (e *Engine) updateNames() {
	if e.observes.Load() {
		return
	}
	e.names.mu.Lock()
	defer e.names.mu.Unlock()
	if !e.names.known {
		return
	}
	nets := map[string]*names.Network{}
	for _, a := range e.index.all() {
		for _, p := range a.view.Load().places {
			n := nets[p.network]
			if n == nil {
				n = &names.Network{Schema: names.Schema, Name: p.name}
				for _, s := range e.networks.Subnets(p.network) {
					n.Subnets = append(n.Subnets, s.String())
				}
				nets[p.network] = n
			}
			n.Members = append(n.Members, p.member)
		}
	}
	if len(nets) == 0 && len(e.names.written) == 0 {
		return
	}
	if err := os.MkdirAll(e.namesDir(), 0o711); err != nil {
		e.log.Error("names are not brought up to date", "error", err)
		return
	}
	for id, n := range nets {
		slices.SortFunc(n.Members, func(a, b names.Member) int { return strings.Compare(a.Name, b.Name) })
		if err := e.names.put(e.namesPath(id), n); err != nil {
			e.log.Error("names are not brought up to date", "network", n.Name, "error", err)
		}
	}
	for path := range maps.Clone(e.names.written) {
		id := filepath.Base(path[:len(path)-len(".json")])
		if nets[id] == nil {
			os.Remove(path)
			delete(e.names.written, path)
		}
	}
}

// knowNames is called when all containers have been found: what is written before
// would lack the names of those that have not, and they would not resolve
// meanwhile.
func (e *Engine) knowNames() {
	if e.observes.Load() {
		return
	}
	written := map[string][]byte{}
	if len(e.unread) == 0 { // those may be on networks that nobody else is on
		written = writtenNames(e.namesDir())
	}
	e.names.mu.Lock()
	e.names.known, e.names.written = true, written
	e.names.mu.Unlock()
	e.updateNames()
}

// writtenNames are the files that a daemon before this one has left, with what
// they say: of networks that nobody is on any more, too, should it have died
// before it could remove them.
func writtenNames(dir string) map[string][]byte {
	out := map[string][]byte{}
	entries, _ := os.ReadDir(dir) // there is none before the first
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		if filepath.Ext(path) != ".json" {
			os.Remove(path) // it was not yet renamed into place
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			b = nil // written anew, or removed
		}
		out[path] = b
	}
	return out
}

// put renames a file into place if it says something else than before. The
// exec root does not outlive the machine's run, so it is not synced.
func (f *nameFiles) put(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if bytes.Equal(f.written[path], b) {
		return nil
	}
	if err := writeRenamed(path, b); err != nil {
		return err
	}
	f.written[path] = b
	return nil
}

func writeRenamed(path string, b []byte) error {
	if err := os.WriteFile(path+".tmp", b, 0o640); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// dnsNames are what a container is called on a network of the user's own: its
// name first, then aliases, ID and host name, each once.
func dnsNames(v *view, es *mobynet.EndpointSettings) []string {
	out := []string{v.spec.Name}
	for _, n := range append(append([]string{}, es.Aliases...), v.spec.ID[:12], v.req.Config.Hostname) {
		if n != "" && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// withDNSNames fills in what the API shows of it.
func withDNSNames(v *view, s *moby.NetworkSettings) *moby.NetworkSettings {
	for name, es := range s.Networks {
		if userNetwork(name) {
			es.DNSNames = dnsNames(v, es)
		}
	}
	return s
}

// writeView writes what a container's name server sees.
func (e *Engine) writeView(id string, req request, sandbox network.Sandbox, upstream []netip.Addr) error {
	v := names.View{Schema: names.Schema, Links: map[string]string{}}
	for _, ep := range sandbox.Endpoints {
		if !userNetwork(ep.Network) {
			continue
		}
		v.Networks = append(v.Networks, e.namesPath(ep.NetworkID))
		if ep.Settings != nil {
			addLinks(v.Links, ep.Settings.Links)
		}
	}
	addLinks(v.Links, req.HostConfig.Links)
	if sandbox.Reaches() {
		for _, a := range upstream {
			v.Upstream = append(v.Upstream, netip.AddrPortFrom(a, 53).String())
		}
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeRenamed(e.viewPath(id), b)
}

// addLinks reads links, "name:alias" or a name alone.
func addLinks(to map[string]string, links []string) {
	for _, l := range links {
		name, alias := l, l
		for i := range l {
			if l[i] == ':' {
				name, alias = l[:i], l[i+1:]
				break
			}
		}
		to[filepath.Base(alias)] = filepath.Base(name)
	}
}

// legacyLinks are the links of a container on the default network, where there
// is no name server: lines of its hosts file. Of a container that does not run
// there is none.
func (e *Engine) legacyLinks(req request, sandbox network.Sandbox) []oci.HostsEntry {
	if len(req.HostConfig.Links) == 0 || !slices.ContainsFunc(sandbox.Endpoints, func(ep network.Endpoint) bool { return ep.Network == mobynet.NetworkBridge }) {
		return nil
	}
	var out []oci.HostsEntry
	for _, l := range req.HostConfig.Links {
		name, alias, err := oci.ParseLink(l)
		if err != nil {
			continue // it was judged when the container was created
		}
		a, err := e.index.find(name)
		if err != nil {
			continue
		}
		v := a.view.Load()
		es := e.networkSettings(v).Networks[mobynet.NetworkBridge]
		if es == nil || !v.state.Alive() {
			continue
		}
		names := []string{alias}
		for _, n := range []string{v.req.Config.Hostname, v.spec.Name} {
			if n != "" && !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
		for _, addr := range []netip.Addr{es.IPAddress, es.GlobalIPv6Address} {
			if addr.IsValid() {
				out = append(out, oci.HostsEntry{Addr: addr, Names: names})
			}
		}
	}
	return out
}

// linkedAt are a container's addresses on the default network, where links to
// it lead.
func linkedAt(v *view) (addrs []netip.Addr) {
	if !v.state.Alive() {
		return nil
	}
	for _, ep := range v.sandbox.Endpoints {
		if ep.Network != mobynet.NetworkBridge {
			continue
		}
		for _, a := range []network.Addressing{ep.IPv4, ep.IPv6} {
			if a.Address.IsValid() {
				addrs = append(addrs, a.Address.Addr())
			}
		}
	}
	return addrs
}

// relink brings the hosts files of those up to date that link to a container of
// the default network, which has begun to run or has another address.
func (e *Engine) relink(to *actor) {
	if !e.links.Load() || e.observes.Load() {
		return
	}
	for _, a := range e.index.all() {
		for _, l := range a.view.Load().req.HostConfig.Links {
			name, _, err := oci.ParseLink(l)
			if err != nil {
				continue
			}
			if found, err := e.index.find(name); err == nil && found == to {
				go a.post(a.rewriteLinks)
				break
			}
		}
	}
}

// rewriteLinks writes the links of a running container into its hosts file, in
// the loop.
func (a *actor) rewriteLinks() {
	if !a.state.Alive() || a.launching {
		return
	}
	links := a.e.legacyLinks(a.req, a.sandbox)
	if len(links) == 0 {
		return
	}
	path := filepath.Join(a.e.store.ContainerDir(a.id), "hosts")
	have, err := os.ReadFile(path)
	if err == nil {
		if want := oci.Relink(have, links); !bytes.Equal(have, want) {
			err = os.WriteFile(path, want, 0o644) // in place: the container has it mounted
		}
	}
	if err != nil {
		a.log.Warn("the container's hosts file was not brought up to date", "error", err)
	}
}

// serveNames gives a shim the sockets of its container's name server, if it is
// to have one. The namespace must be there.
func (e *Engine) serveNames(ctx context.Context, shim Shim, id string, sandbox network.Sandbox) error {
	if !sandbox.Named() {
		return nil
	}
	udp, tcp, err := e.networks.ListenNames(sandbox)
	if err != nil {
		return fmt.Errorf("name server: %w", err)
	}
	defer udp.Close()
	defer tcp.Close()
	return shim.Names(ctx, proto.Names{View: e.viewPath(id)}, udp, tcp)
}

// bringPorts tells a shim that was found where its container's ports lead, if a
// daemon may have died before it could.
func (a *actor) bringPorts(shim Shim) {
	a.post(func() {
		if a.shim == shim && a.sandbox.Moved && a.state.Alive() {
			a.leadPorts(shim, a.sandbox, nil)
		}
	})
}

// bringNames gives a shim that was found without its container's name server,
// because it is new, the sockets for one.
func (a *actor) bringNames(shim Shim) {
	v := a.view.Load()
	if shim.Hello().Names || !v.state.Alive() {
		return
	}
	if err := a.e.serveNames(context.Background(), shim, a.id, v.sandbox); err != nil {
		a.log.Warn("names do not resolve in the container until it is started again", "error", err)
	}
}
