// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"

	"holdfast/internal/errs"
	"holdfast/internal/failpoint"
	"holdfast/internal/filter"
	"holdfast/internal/network/bridge"
)

// Drivers that connect containers to an interface of the host.
const (
	driverMacvlan = "macvlan"
	driverIPvlan  = "ipvlan"
)

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// Create creates a network: its record, then its bridge and rules. Errors:
// ErrInvalidArgument, ErrConflict (the name is taken), ErrPermissionDenied
// (a predefined name, or a subnet that overlaps another network's), ErrNotFound
// (no such driver, or no such configuration network), ErrNotImplemented (swarm
// networks, or no macvlan or ipvlan in the kernel).
func (m *Manager) Create(ctx context.Context, r network.CreateRequest) (string, error) {
	r, err := m.configured(r)
	if err != nil {
		return "", err
	}
	rec, err := m.opts.newRecord(r)
	if err != nil {
		return "", err
	}
	release, err := claim(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	defer m.repairs.suspend()()
	done, err := m.addNetwork(rec, r.IPAM)
	if err != nil {
		return "", err
	}
	defer done()
	failpoint.Here("network-create.recorded")
	if err := m.setUp(ctx, rec); err != nil {
		return "", errors.Join(err, m.condemnRecord(rec), m.finishRemoval(ctx, rec))
	}
	failpoint.Here("network-create.set-up")
	return rec.ID, nil
}

// assign gives a network its subnets and its interface.
func (v *inventory) assign(n *object, asked *network.IPAM) error {
	if c := n.ConfigFrom; c != "" && v.networks[c] == nil {
		return errs.NotFound("configuration network %q was removed meanwhile", c)
	}
	if err := v.assignSubnets(n.record, asked); err != nil {
		return err
	}
	if err := v.assignInterface(n.record); err != nil {
		return err
	}
	return n.makeAllocators()
}

// newRecord validates a request and makes a record of it, without subnets.
func (p *parsed) newRecord(r network.CreateRequest) (*record, error) {
	if err := checkRequest(r); err != nil {
		return nil, err
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
		return nil, errs.Forbidden("only one instance of %q network is allowed", rec.Driver)
	case "overlay":
		return nil, errdefs.ErrNotImplemented.WithMessage("overlay networks of swarm mode are not part of this release: use a network of driver bridge, or --network host for services")
	default:
		return nil, errs.NotFound("plugin %q not found", rec.Driver)
	}
	if r.ConfigFrom != nil {
		rec.ConfigFrom = r.ConfigFrom.Network
	}
	if rec.ConfigFrom == "" { // else the configuration-only network has the defaults already
		rec.addDefaults(p.NetworkOpts[rec.Driver])
	}
	if err := rec.enable(r); err != nil {
		return nil, err
	}
	t, err := rec.checkTraits()
	if err != nil {
		return nil, err
	}
	if r.ConfigOnly {
		return rec, rec.toConfigOnly(r.IPAM)
	}
	if t.isolated != [2]bool{} && !rec.Internal {
		return nil, errs.Invalid("gateway mode 'isolated' can only be used for an internal network")
	}
	if t.mtu == 0 && !rec.hasParent() {
		rec.MTU = p.MTU
	}
	return rec, nil
}

// checkRequest refuses names, scopes and drivers of addresses that no network can
// have.
func checkRequest(r network.CreateRequest) error {
	switch {
	case predefined(r.Name):
		return errs.Forbidden("operation is not permitted on predefined %s network", r.Name)
	case r.Name == "":
		return errs.Invalid("invalid name: name is empty")
	case !validName.MatchString(r.Name):
		return errs.Invalid("invalid network name %q: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", r.Name)
	case r.Name == "container" || r.Name == "default":
		return errs.Forbidden("operation is not permitted on predefined %s network", r.Name)
	case r.Scope != "" && r.Scope != scope && r.Scope != "swarm" && r.Scope != "global":
		return errs.Invalid("invalid scope %q: want local", r.Scope)
	case r.Ingress, r.Scope != "" && r.Scope != scope:
		return errdefs.ErrNotImplemented.WithMessage("networks of scope swarm are not part of the swarm mode of this release: use networks of scope local")
	case r.IPAM != nil && r.IPAM.Driver != "" && r.IPAM.Driver != "default":
		return errs.NotFound("plugin %q not found: the only IPAM driver is default", r.IPAM.Driver)
	}
	return nil
}

// CheckDefaults returns why networks could not be created with the default options of
// their driver.
func CheckDefaults(byDriver map[string]map[string]string) error {
	for _, driver := range []string{driverBridge, driverMacvlan, driverIPvlan} {
		rec := &record{Driver: driver, Options: byDriver[driver]}
		for _, option := range []string{optEnableIPv4, optEnableIPv6} {
			if v, given := rec.Options[option]; given {
				if _, err := strconv.ParseBool(v); err != nil {
					return errs.Invalid("driver %s: invalid option %s=%s: want true or false", driver, option, v)
				}
			}
		}
		if _, err := rec.checkTraits(); err != nil {
			return fmt.Errorf("driver %s: %w", driver, err)
		}
	}
	return nil
}

// addDefaults adds the default options that the request does not give.
func (rec *record) addDefaults(defaults map[string]string) {
	for key, v := range defaults {
		if _, named := rec.Options[key]; !named {
			if rec.Options == nil {
				rec.Options = map[string]string{}
			}
			rec.Options[key] = v
		}
	}
}

// checkTraits parses the options. Names of interfaces have to be such as users may
// give.
func (rec *record) checkTraits() (traits, error) {
	t, err := newTraits(rec.Options)
	if err != nil {
		return t, err
	}
	for _, name := range t.trusted {
		if !isInterfaceName(name) {
			return t, errs.Invalid("invalid option %s=%s: invalid interface name %q: %s", optTrusted, rec.Options[optTrusted], name, wantInterfaceName)
		}
	}
	if !isInterfaceName(t.prefix) {
		return t, errs.Invalid("invalid option %s=%s: %s", optIfacePrefix, t.prefix, wantInterfaceName)
	}
	return t, nil
}

// enable sets the address families of a network. The request's own fields take
// precedence over the options, which may come from the daemon's defaults.
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
			delete(rec.Options, f.option) // the option would contradict the field in inspect
		case named:
			b, err := strconv.ParseBool(v)
			if err != nil {
				return errs.Invalid("invalid option %s=%s: want true or false", f.option, v)
			}
			*f.to = b
		}
	}
	if !rec.EnableIPv4 && !rec.EnableIPv6 {
		return errs.Invalid("IPv4 or IPv6 must be enabled")
	}
	if rec.EnableIPv6 && !hostHasIPv6() {
		return errs.Invalid("the kernel has no IPv6: create the network without it")
	}
	return nil
}

// hasParent reports whether containers sit on an interface of the host.
func (r *record) hasParent() bool { return r.Driver == driverMacvlan || r.Driver == driverIPvlan }

// assignInterface names the bridge, or validates the parent interface.
func (v *inventory) assignInterface(rec *record) error {
	if rec.hasParent() {
		if err := assignParent(rec); err != nil {
			return err
		}
		for _, n := range v.networks {
			if p := n.Parent; p != nil && p.Name == rec.Parent.Name && (p.Mode == modePassthru || rec.Parent.Mode == modePassthru) {
				return errs.Forbidden("network %s uses the parent interface %s already: in mode passthru it is one network's alone", n.Name, p.Name)
			}
		}
		return nil
	}
	name := rec.Options[optName]
	if name == "" {
		name = "br-" + rec.ID[:12]
	}
	if !isInterfaceName(name) {
		return errs.Invalid("invalid bridge name %q: %s", name, wantInterfaceName)
	}
	for _, n := range v.networks {
		if n.Bridge != nil && n.Bridge.Name == name {
			return errs.Forbidden("bridge name conflict: network %s uses the bridge %s", n.Name, name)
		}
	}
	_, exists, err := bridge.Addresses(name)
	if err != nil {
		return err
	}
	rec.Bridge = &bridgeRecord{Name: name, Made: !exists}
	if exists {
		ports, err := bridge.Ports()
		if err != nil {
			return err
		}
		o, _, err := v.opts.ownership(name, ports, hostNames(v.sandboxes))
		if err != nil {
			return err
		}
		rec.Bridge.Made = o.abandoned
	}
	if rec.Bridge.Made && len(rec.Subnets) > 0 {
		var mac net.HardwareAddr
		if gateway := rec.Subnets[0].Gateway; gateway.IsValid() {
			mac = macOf(gateway)
		} else {
			// Without a gateway a container may have any address, and its MAC is
			// derived from it. Another first byte keeps the bridge's MAC distinct.
			mac = macOf(rec.Subnets[0].Prefix.Addr())
			mac[0] |= 0x08
		}
		rec.Bridge.MAC = mac.String()
	}
	return nil
}

// setUp makes a new network in the kernel.
func (m *Manager) setUp(ctx context.Context, rec *record) error {
	if p := rec.Parent; p != nil && p.Made {
		return makeParent(p.Name)
	}
	if rec.Bridge == nil {
		return nil
	}
	all := m.bridges()
	i := slices.IndexFunc(all, func(w wanted) bool { return w.Name == rec.Bridge.Name })
	if i < 0 {
		return fmt.Errorf("network %s: its bridge is not among those wanted", rec.Name)
	}
	if err := m.guard.admit(ctx, all[i]); err != nil {
		return err
	}
	_, err := bridge.Ensure(all[i].Bridge)
	return err
}

// tearDown removes a network from the kernel.
func (m *Manager) tearDown(ctx context.Context, rec *record) error {
	used, err := m.inherit(rec)
	if err != nil {
		return err
	}
	err = m.interfaces.removeNetwork(rec, used)
	if rec.Bridge == nil {
		return err
	}
	return errors.Join(err, m.guard.forgetBridge(ctx, rec.Bridge.Name))
}

// inherit reports whether another network uses the same interface. An interface that the
// engine made is then removed with that network.
func (v *inventory) inherit(rec *record) (used bool, err error) {
	for _, n := range v.networks {
		switch {
		case n.ID == rec.ID:
		case n.Bridge != nil && rec.Bridge != nil && n.Bridge.Name == rec.Bridge.Name:
			used = true
		case n.Parent != nil && rec.Parent != nil && n.Parent.Name == rec.Parent.Name:
			used = true
			if rec.Parent.Made && !n.Parent.Made {
				n.Parent.Made = true
				return true, save(v.opts.Root, n.record)
			}
		}
	}
	return used, nil
}

// Remove removes a network that no running container is on. Errors:
// ErrNotFound, ErrPermissionDenied (predefined, or in use).
func (m *Manager) Remove(ctx context.Context, ref string) (network.Network, error) {
	defer m.repairs.suspend()()
	rec, api, err := m.condemnNetwork(ctx, ref, false)
	if err != nil {
		return api, err
	}
	failpoint.Here("network-remove.recorded")
	return api, m.finishRemoval(ctx, rec)
}

// condemn marks a network's record for removal and forgets it.
func (v *inventory) condemn(rec *record) error {
	gone := *rec
	gone.Removing = true
	if err := save(v.opts.Root, &gone); err != nil {
		return fmt.Errorf("remove network %s: %w", rec.Name, err)
	}
	delete(v.networks, rec.Name)
	return nil
}

// finishRemoval removes a condemned network from the kernel, then its record.
// After a crash in between, the next Restore finishes the removal.
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

// users returns the short IDs of a network's running containers.
func (v *inventory) users(n *object) []string {
	var ids []string
	for id, s := range v.sandboxes {
		if slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.NetworkID == n.ID }) {
			ids = append(ids, id[:min(12, len(id))])
		}
	}
	slices.Sort(ids)
	return ids
}

// Prune removes the user-defined networks that match the filters (label, label!,
// until) and for which used returns false.
func (m *Manager) Prune(ctx context.Context, args filter.Args, until time.Time, used func(id string) bool) (network.PruneReport, error) {
	report := network.PruneReport{NetworksDeleted: []string{}}
	for _, n := range m.prunable(args, until, used) {
		if _, err := m.Remove(ctx, n.ID); err != nil {
			if errdefs.IsPermissionDenied(err) || errdefs.IsNotFound(err) {
				continue // meanwhile it was removed or came into use
			}
			return report, err
		}
		report.NetworksDeleted = append(report.NetworksDeleted, n.Name)
	}
	return report, nil
}
