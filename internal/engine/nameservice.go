// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	moby "github.com/moby/moby/api/types/container"
	mobynet "github.com/moby/moby/api/types/network"

	"holdfast/internal/container"
	"holdfast/internal/engine/namefiles"
	"holdfast/internal/engine/oci"
	"holdfast/internal/errs"
	"holdfast/internal/network"
	"holdfast/internal/shim/proto"
)

// The containers' shims resolve names, from files that package namefiles writes.

// nameService gives the containers' names to those that look for them: to the shims'
// name servers, and on the default network to the hosts files.
type nameService struct {
	*progress
	store    Store
	networks Networks
	index    *index
	files    *namefiles.Files
}

func newNameService(p *progress, d Deps, i *index) *nameService {
	files := namefiles.New(d.Store.NamesDir(), func(id string) []netip.Prefix { return d.Networks.Subnets(id) }, d.Log)
	return &nameService{p, d.Store, d.Networks, i, files}
}

// userNetwork reports whether a network is user-defined, so that names resolve on it.
func userNetwork(name string) bool {
	switch name {
	case mobynet.NetworkBridge, mobynet.NetworkHost, mobynet.NetworkNone, mobynet.NetworkDefault, network.GatewayNetwork:
		return false
	}
	return true
}

// hasUserNetwork reports whether the container requests a user-defined network. It
// spares the other containers, which are most, the cost of their settings.
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

func (n *nameService) viewPath(id string) string {
	return filepath.Join(n.store.RunDir(id), "names.json")
}

// placesOf returns a container's places. The places of a container that does not run
// have no addresses.
func placesOf(n Networks, v *view) []namefiles.Place {
	if !hasUserNetwork(v) {
		return nil
	}
	var out []namefiles.Place
	for name, es := range networkSettings(n, v).Networks {
		if !userNetwork(name) || es.NetworkID == "" || n.NamesPath(es.NetworkID) != "" {
			continue
		}
		p := namefiles.Place{Network: es.NetworkID, Name: name, Container: v.spec.Name, Names: dnsNames(v, es)[1:]}
		if v.state.Alive() {
			for _, addr := range []netip.Addr{es.IPAddress, es.GlobalIPv6Address} {
				if addr.IsValid() {
					p.Addresses = append(p.Addresses, addr)
				}
			}
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b namefiles.Place) int { return strings.Compare(a.Network, b.Network) })
	return out
}

// update writes the networks' files after a container's places have changed.
func (n *nameService) update() {
	if !n.observes.Load() {
		n.files.Update(n.index.places)
	}
}

// begin begins to write the networks' files. It is called when all containers are
// known.
func (n *nameService) begin() {
	if !n.observes.Load() {
		// A container whose record can't be used may need the file of its network.
		n.files.Begin(len(n.index.unread) == 0, n.index.places)
	}
}

// places returns the places of all containers.
func (r *index) places() []namefiles.Place {
	var out []namefiles.Place
	for _, a := range r.all() {
		out = append(out, a.view.Load().places...)
	}
	return out
}

// dnsNames returns a container's names on a user-defined network: its name first,
// then aliases, short ID and host name, without duplicates.
func dnsNames(v *view, es *mobynet.EndpointSettings) []string {
	out := []string{v.spec.Name}
	for _, n := range append(append([]string{}, es.Aliases...), v.spec.ID[:12], v.req.Config.Hostname) {
		if n != "" && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// withDNSNames adds the DNS names to a container's network settings. As in Docker,
// these are shown from the first start on, and only for user-defined networks.
func withDNSNames(v *view, s *moby.NetworkSettings) *moby.NetworkSettings {
	if !v.hasRun() && !v.state.Alive() {
		return s
	}
	for name, es := range s.Networks {
		if userNetwork(name) {
			es.DNSNames = dnsNames(v, es)
		}
	}
	return s
}

// writeView writes the file of a container's name server.
func (n *nameService) writeView(path string, req request, sandbox network.Sandbox, upstream []netip.Addr) error {
	var v namefiles.View
	for _, ep := range sandbox.Endpoints {
		if !userNetwork(ep.Network) {
			continue
		}
		file := n.networks.NamesPath(ep.NetworkID)
		if file == "" {
			file = n.files.Path(ep.NetworkID)
		}
		v.Networks = append(v.Networks, file)
		if ep.Settings != nil {
			v.Links = append(v.Links, ep.Settings.Links...)
		}
	}
	v.Links = append(v.Links, req.HostConfig.Links...)
	if sandbox.Reaches() {
		v.Upstream = upstream
	}
	return n.files.WriteView(path, v)
}

// legacyLinks returns the lines of the hosts file for a container's links on the
// default network, which has no name server. A link to a container that does not
// run has no line.
func (n *nameService) legacyLinks(req request, sandbox network.Sandbox) []oci.HostsEntry {
	if len(req.HostConfig.Links) == 0 || !slices.ContainsFunc(sandbox.Endpoints, func(ep network.Endpoint) bool { return ep.Network == mobynet.NetworkBridge }) {
		return nil
	}
	var out []oci.HostsEntry
	for _, l := range linksOf(req) {
		v, ok := n.index.linked(l)
		if !ok {
			continue
		}
		es := networkSettings(n.networks, v).Networks[mobynet.NetworkBridge]
		if es == nil || !v.state.Alive() {
			continue
		}
		for _, addr := range []netip.Addr{es.IPAddress, es.GlobalIPv6Address} {
			if addr.IsValid() {
				out = append(out, oci.HostsEntry{Addr: addr, Names: l.names(v)})
			}
		}
	}
	return out
}

// link is a link of a container on the default network to another container.
type link struct {
	to    string // the other container's ID; its name in records of earlier releases
	alias string
}

// names returns the names in the hosts file's line for a link.
func (l link) names(to *view) []string {
	names := []string{l.alias}
	for _, n := range []string{to.req.Config.Hostname, to.spec.Name} {
		if n != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

// linksOf returns the links that a container requested on the default network. On a
// user-defined network a link is only a name that resolves, and is not returned.
func linksOf(req request) (out []link) {
	if h := req.HostConfig; len(h.Links) == 0 || h.NetworkMode.IsUserDefined() {
		return nil
	}
	for _, l := range req.HostConfig.Links {
		if to, alias, err := oci.ParseLink(l); err == nil { // no error: the link was validated when the container was created
			out = append(out, link{to, alias})
		}
	}
	return out
}

// linkNames returns the names that containers have because of links to them:
// /container/alias, by the ID of the link's target.
func (r *index) linkNames() map[string][]string {
	if !r.links.Load() {
		return nil
	}
	out := map[string][]string{}
	for _, a := range r.all() {
		v := a.view.Load()
		for _, l := range linksOf(v.req) {
			if to, ok := r.linked(l); ok {
				out[to.spec.ID] = append(out[to.spec.ID], "/"+v.spec.Name+"/"+l.alias)
			}
		}
	}
	return out
}

// apiHostConfig returns a container's configuration as inspect shows it, with the
// present names of its links' targets. A link to a removed container is omitted.
func (i *inspector) apiHostConfig(v *view) *moby.HostConfig {
	if len(v.req.HostConfig.Links) == 0 {
		return v.req.HostConfig
	}
	// On a user-defined network links are shown in the endpoint's settings.
	links := linksOf(v.req)
	h := clonePtr(v.req.HostConfig)
	h.Links = nil
	for _, l := range links {
		if to, ok := i.index.linked(l); ok {
			h.Links = append(h.Links, fmt.Sprintf("/%s:/%s/%s", to.spec.Name, v.spec.Name, l.alias))
		}
	}
	slices.Sort(h.Links)
	return h
}

// removeLink removes a link, which is named container/alias.
func (e *Engine) removeLink(ctx context.Context, ref string) error {
	if _, err := e.find(ctx, ref); err != nil {
		return err
	}
	parent, alias, linked := strings.Cut(strings.TrimPrefix(ref, "/"), "/")
	if !linked {
		return errs.Conflict("Conflict, cannot remove the default link name of the container")
	}
	a, err := e.find(ctx, parent)
	if err != nil {
		return err
	}
	return a.ask(ctx, container.AskChange, func(_ container.Action, done func(error)) { done(a.e.endpoints.unlink(a, alias)) })
}

// unlink removes the link with an alias, in the loop.
func (nw *endpoints) unlink(a *actor, alias string) error {
	req := a.req
	req.HostConfig = clonePtr(req.HostConfig)
	req.HostConfig.Links = nil
	var gone []oci.HostsEntry
	for _, l := range linksOf(a.req) {
		if l.alias != alias {
			req.HostConfig.Links = append(req.HostConfig.Links, l.to+":"+l.alias)
		} else if to, ok := nw.index.linked(l); ok {
			gone = append(gone, oci.HostsEntry{Names: l.names(to)})
			for _, addr := range linkedAt(to) {
				gone = append(gone, oci.HostsEntry{Addr: addr, Names: l.names(to)})
			}
		}
	}
	sandbox := a.sandbox
	sandbox.LegacyLinks = networkRequest(a.spec, req).LegacyLinks
	if err := a.saveChanged(req, sandbox); err != nil {
		return fmt.Errorf("remove the link %s of %s: %w", alias, a.spec.Name, err)
	}
	if !a.joined() {
		return nil
	}
	path := filepath.Join(nw.store.ContainerDir(a.id), "hosts")
	have, err := os.ReadFile(path)
	if err == nil {
		if want := oci.Unlink(have, gone); !bytes.Equal(have, want) {
			err = os.WriteFile(path, want, 0o644) // in place, because it is bind-mounted in the container
		}
	}
	if err != nil {
		a.log.Warn("the container's hosts file could not be updated", "error", err)
	}
	return nw.networks.ApplyLegacyLinks(context.Background(), sandbox)
}

// linkedAt returns a container's addresses on the default network, to which links to
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

// relink updates the hosts files of the containers that link to a container of the
// default network, after that one has started or its address has changed.
func (n *nameService) relink(to *actor) {
	if !n.index.links.Load() || n.observes.Load() {
		return
	}
	for _, a := range n.index.all() {
		for _, l := range linksOf(a.view.Load().req) {
			if v, ok := n.index.linked(l); ok && v.spec.ID == to.id {
				go a.post(func() { a.e.endpoints.rewriteLinks(a) })
				break
			}
		}
	}
}

// rewriteLinks writes the links of a running container into its hosts file, in
// the loop.
func (nw *endpoints) rewriteLinks(a *actor) {
	if !a.phase.State.Alive() || a.phase.Attempt != container.NoAttempt {
		return
	}
	links := nw.names.legacyLinks(a.req, a.sandbox)
	if len(links) == 0 {
		return
	}
	path := filepath.Join(nw.store.ContainerDir(a.id), "hosts")
	have, err := os.ReadFile(path)
	if err == nil {
		if want := oci.Relink(have, links); !bytes.Equal(have, want) {
			err = os.WriteFile(path, want, 0o644) // in place, because it is bind-mounted in the container
		}
	}
	if err != nil {
		a.log.Warn("the container's hosts file could not be updated", "error", err)
	}
}

// serve passes the sockets of the container's name server to its shim, if the
// container has one. The network namespace must exist.
func (n *nameService) serve(ctx context.Context, shim Shim, id string, sandbox network.Sandbox) error {
	if !sandbox.Named() {
		return nil
	}
	udp, tcp, err := n.networks.ListenNames(sandbox)
	if err != nil {
		return fmt.Errorf("name server: %w", err)
	}
	defer udp.Close()
	defer tcp.Close()
	return shim.Names(ctx, proto.Names{View: n.viewPath(id)}, udp, tcp)
}
