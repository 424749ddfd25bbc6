package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"

	"holdfast/internal/failpoint"
	"holdfast/internal/filter"
	"holdfast/internal/network/bridge"
	"holdfast/internal/network/ipam"
	"holdfast/internal/network/nft"
)

// Drivers that connect containers to a link of the host's.
const (
	driverMacvlan = "macvlan"
	driverIPvlan  = "ipvlan"
)

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

func forbidden(format string, args ...any) error {
	return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf(format, args...))
}

// Create makes a network: its record, then its bridge and rules. Errors:
// ErrInvalidArgument, ErrConflict (the name is taken), ErrPermissionDenied
// (a predefined name, or a subnet that overlaps another network's), ErrNotFound
// (the configuration that it names), ErrNotImplemented (a driver or a kind of
// network that there is not).
func (m *Manager) Create(ctx context.Context, r network.CreateRequest) (string, error) {
	r, err := m.configured(r)
	if err != nil {
		return "", err
	}
	rec, err := m.judge(r)
	if err != nil {
		return "", err
	}
	release, err := claim(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	m.changing.RLock()
	defer m.changing.RUnlock()
	m.mu.Lock()
	if other := m.networks[rec.Name]; other != nil {
		m.mu.Unlock()
		return "", errdefs.ErrConflict.WithMessage(fmt.Sprintf("network with name %s already exists", rec.Name))
	}
	n := &object{record: rec}
	if !rec.ConfigOnly {
		err = m.give(n, r.IPAM)
	}
	if err == nil {
		// Intent first: a crash from here on leaves a network that Restore makes
		// whole and that can be removed.
		err = save(m.opts.Root, rec)
	}
	if err != nil {
		m.mu.Unlock()
		return "", err
	}
	m.networks[rec.Name] = n
	m.mu.Unlock()
	failpoint.Here("network-create.recorded")
	if err := m.setUp(ctx, rec); err != nil {
		return "", errors.Join(err, m.remove(ctx, n))
	}
	failpoint.Here("network-create.set-up")
	return rec.ID, nil
}

// give gives a network its subnets and its link. m.mu is held.
func (m *Manager) give(n *object, asked *network.IPAM) error {
	if c := n.ConfigFrom; c != "" && m.networks[c] == nil {
		return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("configuration network %q was removed meanwhile", c))
	}
	if err := m.giveSubnets(n.record, asked); err != nil {
		return err
	}
	if err := m.giveLink(n.record); err != nil {
		return err
	}
	return n.makeAllocators()
}

// judge makes a record of what was asked for, without subnets.
func (m *Manager) judge(r network.CreateRequest) (*record, error) {
	switch {
	case predefined(r.Name):
		return nil, forbidden("operation is not permitted on predefined %s network", r.Name)
	case r.Name == "":
		return nil, invalid("invalid network name: name is empty")
	case !validName.MatchString(r.Name):
		return nil, invalid("invalid network name %q: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", r.Name)
	case r.Name == "container" || r.Name == "default":
		return nil, invalid("invalid network name %q: it has a meaning of its own", r.Name)
	case r.Scope != "" && r.Scope != scope && r.Scope != "swarm" && r.Scope != "global":
		return nil, invalid("invalid scope %q: want local", r.Scope)
	case r.Ingress, r.Scope != "" && r.Scope != scope:
		return nil, errdefs.ErrNotImplemented.WithMessage("networks of scope swarm need swarm mode, which this release does not have")
	case r.IPAM != nil && r.IPAM.Driver != "" && r.IPAM.Driver != "default":
		return nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("plugin %q not found: the only IPAM driver is default", r.IPAM.Driver))
	}
	rec := &record{
		Schema: recordSchema, ID: randomID(), Name: r.Name, Driver: r.Driver, Created: time.Now().UTC(),
		EnableIPv4: true, Internal: r.Internal, Attachable: r.Attachable,
		Options: maps.Clone(r.Options), Labels: maps.Clone(r.Labels),
	}
	if r.IPAM != nil {
		rec.IPAMOptions = maps.Clone(r.IPAM.Options)
	}
	if rec.Driver == "" {
		rec.Driver = driverBridge
	}
	switch rec.Driver {
	case driverBridge, driverMacvlan, driverIPvlan:
	case driverHost, driverNull:
		return nil, forbidden("only one instance of %q network is allowed", rec.Driver)
	case "overlay":
		return nil, errdefs.ErrNotImplemented.WithMessage("networks of driver overlay need swarm mode, which this release does not have")
	default:
		return nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("could not find plugin %s in v1 plugin registry: plugin not found", rec.Driver))
	}
	if r.ConfigFrom != nil {
		rec.ConfigFrom = r.ConfigFrom.Network
	}
	for key, v := range m.opts.NetworkOpts[rec.Driver] {
		if rec.ConfigFrom != "" {
			break // they are in that one
		}
		if _, named := rec.Options[key]; !named {
			if rec.Options == nil {
				rec.Options = map[string]string{}
			}
			rec.Options[key] = v
		}
	}
	if err := rec.enable(r); err != nil {
		return nil, err
	}
	t, err := parseTraits(rec.Options)
	if err != nil {
		return nil, err
	}
	if r.ConfigOnly {
		return rec, rec.judgeConfigOnly(r.IPAM)
	}
	if t.isolated != [2]bool{} && !rec.Internal {
		return nil, invalid("gateway mode 'isolated' can only be used for an internal network")
	}
	if t.mtu == 0 && !rec.isLink() {
		rec.MTU = m.opts.MTU
	}
	return rec, nil
}

// enable says which families a network has: what was asked for goes before the
// options, which is where the daemon's defaults stand.
func (rec *record) enable(r network.CreateRequest) error {
	for _, f := range []struct {
		option string
		asked  *bool
		to     *bool
	}{
		{optEnableIPv4, r.EnableIPv4, &rec.EnableIPv4},
		{optEnableIPv6, r.EnableIPv6, &rec.EnableIPv6},
	} {
		v, named := rec.Options[f.option]
		switch {
		case f.asked != nil:
			*f.to = *f.asked
			delete(rec.Options, f.option) // it would tell the contrary in inspect
		case named:
			b, err := strconv.ParseBool(v)
			if err != nil {
				return invalid("invalid option %s=%s: want true or false", f.option, v)
			}
			*f.to = b
		}
	}
	if !rec.EnableIPv4 && !rec.EnableIPv6 {
		return invalid("IPv4 or IPv6 must be enabled")
	}
	if rec.EnableIPv6 && !hostHasIPv6() {
		return invalid("the kernel has no IPv6: create the network without it")
	}
	return nil
}

// giveSubnets gives a record the subnets that were asked for, and one of the
// pools for each family that none was asked for. m.mu is held.
func (m *Manager) giveSubnets(rec *record, asked *network.IPAM) error {
	var configs []network.IPAMConfig
	if asked != nil {
		configs = asked.Config
	}
	t, err := parseTraits(rec.Options)
	if err != nil {
		return err
	}
	used := m.subnetsInUse()
	have := map[bool]bool{} // by family: is6
	for _, c := range configs {
		if !c.Subnet.IsValid() {
			if c.IPRange.IsValid() || c.Gateway.IsValid() || len(c.AuxAddress) > 0 {
				return invalid("invalid IPAM configuration: a range, gateway or auxiliary address needs the subnet that it is of")
			}
			continue
		}
		if c.Subnet.Addr().Is6() && !rec.EnableIPv6 || c.Subnet.Addr().Is4() && !rec.EnableIPv4 {
			continue // as in Docker: files name the subnets of both families, and switch one off
		}
		s, err := judgeSubnet(c)
		if err != nil {
			return err
		}
		v6 := s.Prefix.Addr().Is6()
		for _, u := range used {
			if u.Overlaps(s.Prefix) {
				return forbidden("invalid pool request: Pool overlaps with other one on this address space")
			}
		}
		for _, other := range rec.Subnets {
			if other.Prefix.Overlaps(s.Prefix) {
				return invalid("invalid subnet %s: it overlaps with %s of the same network", s.Prefix, other.Prefix)
			}
		}
		rec.Subnets = append(rec.Subnets, s)
		have[v6] = true
	}
	routes, err := bridge.Used("")
	if err != nil {
		return err
	}
	if rec.EnableIPv4 && !have[false] {
		p, err := ipam.FirstFree(m.opts.Pools, false, append(routes, used...))
		if err != nil {
			return errdefs.ErrResourceExhausted.WithMessage(err.Error() + ": name a subnet, or remove networks that are not used")
		}
		rec.Subnets = append(rec.Subnets, subnet{Prefix: p, Gateway: ipam.Gateway(p)})
	}
	if rec.EnableIPv6 && !have[true] {
		p, err := ipam.FirstFree(m.opts.Pools, true, append(routes, used...))
		if err != nil {
			p = uniqueLocal()
		}
		rec.Subnets = append(rec.Subnets, subnet{Prefix: p, Gateway: ipam.Gateway(p)})
	}
	for i := range rec.Subnets {
		s := &rec.Subnets[i]
		if !s.Gateway.IsValid() {
			s.Gateway = ipam.Gateway(s.Prefix)
		}
		if rec.Driver == driverBridge && !t.bare(nft.FamilyOf(s.Gateway)) {
			s.Bridge = s.Gateway
		}
		if err := s.judgeReserved(); err != nil {
			return err
		}
	}
	return nil
}

// judgeReserved refuses a gateway and auxiliary addresses that are one another's,
// or the network's own.
func (s subnet) judgeReserved() error {
	taken := map[netip.Addr]bool{}
	if s.Prefix.Addr().BitLen()-s.Prefix.Bits() > 1 {
		taken[s.Prefix.Addr()] = true
		if s.Prefix.Addr().Is4() {
			taken[ipam.Last(s.Prefix)] = true
		}
	}
	if taken[s.Gateway] {
		return invalid("failed to allocate gateway (%s): %v", s.Gateway, ipam.ErrInUse)
	}
	taken[s.Gateway] = true
	for _, name := range slices.Sorted(maps.Keys(s.Aux)) {
		if a := s.Aux[name]; taken[a] {
			return invalid("failed to allocate secondary ip address (%s:%s): %v", name, a, ipam.ErrInUse)
		}
		taken[s.Aux[name]] = true
	}
	return nil
}

func judgeSubnet(c network.IPAMConfig) (subnet, error) {
	s := subnet{Prefix: c.Subnet.Masked(), Aux: c.AuxAddress}
	if c.Subnet.Bits() > c.Subnet.Addr().BitLen()-1 {
		return s, invalid("invalid subnet %s: there is no room for a container in it", c.Subnet)
	}
	if c.Subnet != s.Prefix {
		return s, invalid("invalid subnet %s: it should be %s", c.Subnet, s.Prefix)
	}
	if a := s.Prefix.Addr(); a.IsLoopback() || a.IsMulticast() {
		return s, invalid("invalid subnet %s: its addresses have a meaning of their own", s.Prefix)
	}
	if c.IPRange.IsValid() {
		if c.IPRange.Bits() < s.Prefix.Bits() || !s.Prefix.Contains(c.IPRange.Addr()) {
			return s, invalid("invalid ip-range %s: it is not part of the subnet %s", c.IPRange, s.Prefix)
		}
		s.Range = c.IPRange.Masked()
	}
	if c.Gateway.IsValid() {
		if !s.Prefix.Contains(c.Gateway) {
			return s, invalid("invalid gateway %s: it is not part of the subnet %s", c.Gateway, s.Prefix)
		}
		s.Gateway = c.Gateway
	}
	for name, a := range c.AuxAddress {
		if !s.Prefix.Contains(a) {
			return s, invalid("invalid auxiliary address %s (%s): it is not part of the subnet %s", name, a, s.Prefix)
		}
	}
	return s, nil
}

// subnetsInUse are those of all networks. m.mu is held.
func (m *Manager) subnetsInUse() []netip.Prefix {
	var used []netip.Prefix
	for _, n := range m.networks {
		if n.ConfigOnly {
			continue
		}
		for _, s := range n.Subnets {
			used = append(used, s.Prefix)
		}
	}
	// And those that containers still have of an earlier configuration.
	for _, s := range m.sandboxes {
		for _, e := range s.Endpoints {
			for _, a := range []Addressing{e.IPv4, e.IPv6} {
				if a.Address.IsValid() {
					used = append(used, a.Address.Masked())
				}
			}
		}
	}
	return used
}

// isLink: containers sit on a link of the host's, without a bridge.
func (r *record) isLink() bool { return r.Driver == driverMacvlan || r.Driver == driverIPvlan }

// giveLink names the bridge, or judges the parent link. m.mu is held.
func (m *Manager) giveLink(rec *record) error {
	if rec.isLink() {
		if err := giveParent(rec); err != nil {
			return err
		}
		for _, n := range m.networks {
			if p := n.Parent; p != nil && p.Name == rec.Parent.Name && (p.Mode == modePassthru || rec.Parent.Mode == modePassthru) {
				return forbidden("network %s uses the parent interface %s already: in mode passthru it is one network's alone", n.Name, p.Name)
			}
		}
		return nil
	}
	name := rec.Options[optName]
	if name == "" {
		name = "br-" + rec.ID[:12]
	}
	if len(name) > 15 || strings.ContainsAny(name, "/: \t\n\v\f\r") || name == "." || name == ".." {
		return invalid("invalid bridge name %q: an interface's name has at most 15 characters, no blanks, colons and slashes", name)
	}
	for _, n := range m.networks {
		if n.Bridge != nil && n.Bridge.Name == name {
			return forbidden("bridge name conflict: network %s uses the bridge %s", n.Name, name)
		}
	}
	_, exists, err := bridge.Addresses(name)
	if err != nil {
		return err
	}
	rec.Bridge = &bridgeRecord{Name: name, Made: !exists}
	if rec.Bridge.Made && len(rec.Subnets) > 0 {
		rec.Bridge.MAC = macOf(rec.Subnets[0].Gateway).String()
	}
	return nil
}

// setUp makes the kernel's side of a new network.
func (m *Manager) setUp(ctx context.Context, rec *record) error {
	if p := rec.Parent; p != nil && p.Made {
		return makeParent(p.Name)
	}
	if rec.Bridge == nil {
		return nil
	}
	// The rules come first, so that nothing passes unfiltered.
	if err := m.Sync(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	all := m.bridges()
	m.mu.Unlock()
	i := slices.IndexFunc(all, func(w wanted) bool { return w.Name == rec.Bridge.Name })
	if i < 0 {
		return fmt.Errorf("network %s: its bridge is not among those wanted", rec.Name)
	}
	if err := m.forward(all[i]); err != nil {
		return err
	}
	_, err := bridge.Ensure(all[i].Bridge)
	return err
}

// tearDown removes it.
func (m *Manager) tearDown(ctx context.Context, rec *record) error {
	m.mu.Lock()
	used, err := m.inherit(rec)
	m.mu.Unlock()
	if err != nil {
		return err
	}
	if p := rec.Parent; p != nil && p.Made && !used {
		return bridge.RemoveLink(p.Name)
	}
	if rec.Bridge == nil {
		return nil
	}
	if rec.Bridge.Made && !used {
		m.links.Lock()
		err = bridge.Remove(rec.Bridge.Name)
		m.links.Unlock()
	}
	m.leaveZones(ctx, rec.Bridge.Name)
	return errors.Join(err, m.Sync(ctx))
}

// inherit reports whether another network uses a network's link. A link that
// the engine made is that one's to remove from then on. m.mu is held.
func (m *Manager) inherit(rec *record) (used bool, err error) {
	for _, n := range m.networks {
		switch {
		case n.ID == rec.ID:
		case n.Bridge != nil && rec.Bridge != nil && n.Bridge.Name == rec.Bridge.Name:
			used = true
		case n.Parent != nil && rec.Parent != nil && n.Parent.Name == rec.Parent.Name:
			used = true
			if rec.Parent.Made && !n.Parent.Made {
				n.Parent.Made = true
				return true, save(m.opts.Root, n.record)
			}
		}
	}
	return used, nil
}

// Remove removes a network that no running container is on. Errors:
// ErrNotFound, ErrPermissionDenied (predefined, or in use).
func (m *Manager) Remove(ctx context.Context, ref string) (network.Network, error) {
	m.changing.RLock()
	defer m.changing.RUnlock()
	m.mu.Lock()
	n, err := m.lookup(ref)
	if err != nil {
		m.mu.Unlock()
		return network.Network{}, err
	}
	api := n.api()
	if predefined(n.Name) {
		m.mu.Unlock()
		return api, forbidden("%s is a pre-defined network and cannot be removed", n.Name)
	}
	if users := m.users(n); len(users) > 0 {
		m.mu.Unlock()
		return api, forbidden("error while removing network: network %s has active endpoints (%s)", n.Name, strings.Join(users, ", "))
	}
	if m.configures(n) {
		m.mu.Unlock()
		return api, forbidden("configuration network %q is in use", n.Name)
	}
	err = m.condemn(n)
	m.mu.Unlock()
	if err != nil {
		return api, err
	}
	failpoint.Here("network-remove.recorded")
	return api, m.finishRemoval(ctx, n.record)
}

// remove removes a network that nobody is on.
func (m *Manager) remove(ctx context.Context, n *object) error {
	m.mu.Lock()
	err := m.condemn(n)
	m.mu.Unlock()
	return errors.Join(err, m.finishRemoval(ctx, n.record))
}

// condemn stores that the network is to go, and forgets it. m.mu is held.
func (m *Manager) condemn(n *object) error {
	gone := *n.record
	gone.Removing = true
	if err := save(m.opts.Root, &gone); err != nil {
		return fmt.Errorf("remove network %s: %w", n.Name, err)
	}
	delete(m.networks, n.Name)
	return nil
}

// finishRemoval removes the kernel's side of a condemned network, and then its
// record: a crash between leaves the record, which says what is left to do.
func (m *Manager) finishRemoval(ctx context.Context, rec *record) error {
	if err := m.tearDown(ctx, rec); err != nil {
		return err
	}
	failpoint.Here("network-remove.torn-down")
	if err := os.Remove(filepath.Join(m.opts.Root, rec.ID+".json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network %s: %w", rec.Name, err)
	}
	return nil
}

// users are the containers that run on a network, by short ID. m.mu is held.
func (m *Manager) users(n *object) []string {
	var ids []string
	for id, s := range m.sandboxes {
		if slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.NetworkID == n.ID }) {
			ids = append(ids, id[:min(12, len(id))])
		}
	}
	slices.Sort(ids)
	return ids
}

// Prune removes the user-defined networks that match (label, label!, until)
// and for which used says no.
func (m *Manager) Prune(ctx context.Context, args filter.Args, until time.Time, used func(id string) bool) (network.PruneReport, error) {
	report := network.PruneReport{NetworksDeleted: []string{}}
	m.mu.Lock()
	var gone []string
	for _, name := range slices.Sorted(maps.Keys(m.networks)) {
		n := m.networks[name]
		switch {
		case predefined(name), n.ConfigOnly, len(m.users(n)) > 0, used(n.ID),
			!until.IsZero() && !n.Created.Before(until),
			!args.KV("label", n.Labels),
			args.Has("label!") && args.KV("label!", n.Labels):
		default:
			gone = append(gone, name)
		}
	}
	m.mu.Unlock()
	for _, name := range gone {
		if _, err := m.Remove(ctx, name); err != nil {
			if errdefs.IsPermissionDenied(err) || errdefs.IsNotFound(err) {
				continue // somebody began to use it, or removed it
			}
			return report, err
		}
		report.NetworksDeleted = append(report.NetworksDeleted, name)
	}
	return report, nil
}

// ifName is the next free interface name of a sandbox.
func ifName(s *Sandbox, prefix string) string {
	for i := 0; ; i++ {
		name := prefix + strconv.Itoa(i)
		if !slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.Name == name }) {
			return name
		}
	}
}
