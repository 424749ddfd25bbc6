// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"

	"holdfast/internal/network/bridge"
)

// interfaces are the network interfaces of the networks and containers: bridges,
// veths, macvlan and ipvlan interfaces with their parents. Its lock comes before
// the registry's.
type interfaces struct {
	opts       *parsed
	reg        *registry
	troubles   *troubles
	namespaces *namespaces

	// mu is held while bridges are made again or removed, so that a bridge is not
	// made again while its network is being removed.
	mu sync.Mutex
}

// joinSandbox makes a sandbox's network namespace with its interfaces, addresses and
// routes. It is idempotent.
func (i *interfaces) joinSandbox(s Sandbox) error {
	if s.Netns == "" || s.Shared {
		return nil
	}
	inside, err := s.interfaces()
	if err != nil {
		return err
	}
	inside.Owner = i.opts.Root
	if err := bridge.Join(inside); err != nil {
		return fmt.Errorf("network of container %s: %w", s.Container, err)
	}
	if err := i.joinOverlays(s); err != nil {
		return fmt.Errorf("network of container %s: %w", s.Container, err)
	}
	i.namespaces.open(s)
	announceAgain(s, inside.Interfaces, i.opts.Log, i.reg)
	return nil
}

// removeNetwork removes the bridge or the parent of a network that is gone, if the engine
// made it and no other network uses it.
func (i *interfaces) removeNetwork(rec *record, used bool) error {
	if rec.Overlay != nil {
		return i.opts.overlays().Remove(rec.ID)
	}
	if p := rec.Parent; p != nil && p.Made && !used {
		return bridge.RemoveInterface(p.Name)
	}
	if rec.Bridge == nil {
		return nil
	}
	ports, err := bridge.Ports()
	// Containers of another data root may be on the bridge.
	if err != nil || !rec.Bridge.Made || used || i.opts.othersOn(rec.Bridge.Name, ports, nil) {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return bridge.Remove(rec.Bridge.Name)
}

// ensureParents makes the interfaces again that the engine made for networks
// without a bridge. A reboot removes them.
func (i *interfaces) ensureParents() {
	_, _, parents := i.reg.intent()
	for network, parent := range parents {
		if err := makeParent(parent); err != nil {
			// Containers of this network can't start; all others can.
			i.opts.Log.Error("the parent interface of a network can't be made", "network", network, "error", err)
		}
	}
}

// ensureBridges makes the bridges what they should be.
func (i *interfaces) ensureBridges(bridges []wanted, sandboxes map[string]Sandbox, ports map[string]bridge.Port) error {
	used := hostNames(sandboxes)
	for _, b := range bridges {
		kind, err := i.opts.considerate(b.Bridge, ports, used)
		if err != nil {
			return err
		}
		changed, err := bridge.Ensure(kind)
		if err != nil {
			return err
		}
		if changed {
			i.opts.Log.Info("bridge set up", "bridge", b.Name)
		}
		for _, s := range sandboxes {
			if e, on := onDefault(s); on && e.Bridge == b.Name && len(s.LegacyLinks) > 0 {
				if err := answerForNeighbours(s); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// restoreSandboxes restores what running containers have lost, for example after a user
// deleted the bridge. A container that can't be repaired must not keep the others
// from being restored.
func (i *interfaces) restoreSandboxes(sandboxes map[string]Sandbox, ports map[string]bridge.Port) {
	for id, s := range sandboxes {
		log := i.opts.Log.With("container", id)
		if s.Netns == "" || s.Shared {
			continue
		}
		if !bridge.IsNamespace(s.Netns) {
			log.Warn("the network namespace is no longer mounted: the container keeps running, its interfaces can't be repaired", "path", s.Netns)
			i.troubles.add(id, "its network namespace is no longer mounted at "+s.Netns+": its interfaces can't be repaired; restart the container")
			continue
		}
		i.namespaces.open(s)
		if s.Moved {
			if err := i.finishConnect(s); err != nil {
				log.Warn("a connect or disconnect that was interrupted can't be finished", "error", err)
				i.troubles.add(id, "it was being connected or disconnected when the daemon ended, which can't be finished: "+err.Error())
			}
		}
		if err := i.joinOverlays(s); err != nil {
			log.Warn("the container's place on an overlay network can't be restored", "error", err)
			i.troubles.add(id, "its place on an overlay network can't be restored: "+err.Error())
		}
		for _, e := range s.Endpoints {
			if e.Bridge == "" {
				continue
			}
			p, there := ports[e.HostName]
			switch {
			case !there:
				if err := i.joinSandbox(s); err != nil {
					log.Warn("interface not restored", "interface", e.HostName, "error", err)
					i.troubles.add(id, "its interface "+e.Name+" is gone and can't be made again: "+err.Error())
				} else {
					log.Warn("the interface was gone, it was made again", "interface", e.HostName)
				}
			case p.Bridge != e.Bridge || !p.Up:
				if err := bridge.Attach(p, e.Bridge, e.Isolated); err != nil {
					log.Warn("interface not restored", "interface", e.HostName, "error", err)
					i.troubles.add(id, "its interface "+e.HostName+" can't be put on the bridge "+e.Bridge+": "+err.Error())
				} else {
					log.Warn("the interface was down or on no bridge, it is set up again", "interface", e.HostName)
				}
			default:
				if !bridge.Owned(p.Description, i.opts.Root) {
					// An earlier release did not mark it, or the data root was moved.
					if err := bridge.Own(p, i.opts.Root); err != nil {
						log.Warn("the interface can't be marked as this data root's", "interface", e.HostName, "error", err)
					}
				}
				// An earlier release did not change the kernel's defaults.
				if changed, err := p.Harden(); err != nil {
					log.Warn("the interface's settings can't be corrected", "interface", e.HostName, "error", err)
				} else if changed {
					log.Info("the interface's settings were corrected", "interface", e.HostName)
				}
			}
		}
	}
}

// finishConnect completes what an ApplySandbox that a crash interrupted has left of
// interfaces in the namespace. Those without a host end are not found among the host's
// ports, and one that is found may not be complete. It is idempotent.
func (i *interfaces) finishConnect(s Sandbox) error {
	if l := s.Left; l != nil && l.Parent != nil && !slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.Name == l.Name }) {
		if err := bridge.RemoveInside(s.Netns, l.Name); err != nil {
			return err
		}
	}
	for _, e := range s.Endpoints {
		if e.Parent == nil {
			continue
		}
		if there, err := bridge.HasInside(s.Netns, e.Name); err != nil || !there {
			return errors.Join(err, i.joinSandbox(s))
		}
	}
	if s.Applying {
		// An interface may be there without its address or its routes.
		return i.joinSandbox(s)
	}
	return nil
}

// removeOrphans removes namespaces and interfaces of containers that no longer
// run.
func (i *interfaces) removeOrphans(sandboxes map[string]Sandbox, bridges []wanted, ports map[string]bridge.Port) error {
	var errs []error
	dirs, err := os.ReadDir(filepath.Dir(filepath.Dir(i.opts.netnsPath("id"))))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("network namespaces: %w", err)
	}
	for _, dir := range dirs {
		id := dir.Name()
		path := i.opts.netnsPath(id)
		if s, known := sandboxes[id]; known && s.Netns == path {
			continue
		}
		if _, err := os.Lstat(path); err != nil {
			continue
		}
		i.opts.Log.Info("removed the network namespace of a container that no longer runs", "container", id)
		errs = append(errs, bridge.Leave(path))
	}
	errs = append(errs, removeStrays(i.opts, sandboxes, bridges, ports), i.removeOverlayOrphans(sandboxes))
	return errors.Join(errs...)
}

// removeStrays removes the interfaces of ours on our bridges that no sandbox
// names.
func removeStrays(o *parsed, sandboxes map[string]Sandbox, bridges []wanted, ports map[string]bridge.Port) error {
	used := hostNames(sandboxes)
	left := map[string]bool{}
	for _, s := range sandboxes {
		if s.Left != nil {
			left[s.Left.HostName] = true
		}
	}
	ours := map[string]bool{}
	for _, b := range bridges {
		ours[b.Name] = true
	}
	var errs []error
	for name, p := range ports {
		// An unmarked interface may belong to another data root with an earlier
		// release.
		if ours[p.Bridge] && ourVeth.MatchString(name) && !used[name] && (left[name] || bridge.Owned(p.Description, o.Root)) {
			o.Log.Info("removed the interface of a container that no longer runs", "interface", name)
			errs = append(errs, bridge.RemovePort(p))
		}
	}
	return errors.Join(errs...)
}

// removeReleased removes the interfaces of released sandboxes that the kernel has
// not removed with their network namespaces. A namespace remains while any process
// of the host is in it or has it open, and its interface would go on answering for
// an address that is given to another container.
func (i *interfaces) removeReleased() error {
	ports, err := bridge.Ports()
	if err != nil {
		return err
	}
	bridges, sandboxes, _ := i.reg.intent()
	return removeStrays(i.opts, sandboxes, bridges, ports)
}

// repairAll repairs the bridges, the parents and the bridges' ports after a change by
// another program. It ignores a missing port, because its container may just be
// ending; the next Restore handles it.
func (i *interfaces) repairAll() (repaired bool, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	bridges, sandboxes, parents := i.reg.intent()
	ports, err := bridge.Ports()
	if err != nil {
		return false, err
	}
	var errs []error
	// note adds up what the single repairs report.
	note := func(changed bool, err error, message string, args ...any) {
		errs = append(errs, err)
		if changed {
			i.opts.Log.Warn(message, args...)
		}
		repaired = repaired || changed
	}
	used := hostNames(sandboxes)
	for _, b := range bridges {
		kind, err := i.opts.considerate(b.Bridge, ports, used)
		errs = append(errs, err)
		kind.Tolerant = true
		changed, err := bridge.Ensure(kind)
		note(changed, err, "a bridge was changed by others, it is set up again", "bridge", b.Name)
	}
	for _, name := range parents {
		changed, err := bridge.IgnoreRouters(name)
		note(changed, err, "an interface was changed by others, it is set up again", "interface", name)
	}
	for id, s := range sandboxes {
		for _, e := range s.Endpoints {
			if p, there := ports[e.HostName]; there && e.Bridge != "" {
				changed, err := i.repairPort(id, e, p)
				note(changed, err, "an interface was changed by others, it is set up again", "container", id, "interface", e.HostName)
			}
		}
	}
	return repaired, errors.Join(errs...)
}

// repairPort repairs the host's end of an endpoint.
func (i *interfaces) repairPort(container string, e Endpoint, p bridge.Port) (changed bool, err error) {
	if p.Bridge == e.Bridge && p.Up {
		return p.Harden()
	}
	if err := bridge.Attach(p, e.Bridge, e.Isolated); err != nil {
		i.troubles.add(container, "its interface "+e.HostName+" was taken from the bridge "+e.Bridge+" and can't be put back: "+err.Error())
		return false, err
	}
	return true, nil
}

// ourVeth matches the names of the host's ends of endpoints, see hostName.
var ourVeth = regexp.MustCompile(`^veth[0-9a-f]{11}$`)
