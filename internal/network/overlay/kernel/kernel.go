// SPDX-License-Identifier: Apache-2.0

// Package kernel makes the data plane of overlay networks by netlink. For each
// network a host has a network namespace with a bridge and a VXLAN interface for
// each subnet, and one end of a veth for each endpoint; the other end is in the
// container's namespace. It owns these namespaces and veths, which it identifies by
// name. It knows neither swarms nor containers nor packet filters.
//
// All state is in the kernel, and all functions are idempotent, also after they
// were interrupted at any point. What is right is not touched. The host is the
// calling thread's network namespace. It has the socket of each VXLAN interface:
// packets between hosts pass its routes and filters, and nothing that a container
// or the network's namespace does can reach them.
package kernel

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/dump"
	"holdfast/internal/network/overlay"
	"holdfast/internal/osthread"
)

// ErrInUse is the error of Remove for a network that has endpoints.
var ErrInUse = errors.New("the network has endpoints on this host")

// Host makes the data planes of a host's networks.
type Host struct {
	// Dir is the folder in which the namespaces are mounted, each on a file with the
	// network's ID as its name.
	Dir string
}

func (h Host) path(network string) string { return filepath.Join(h.Dir, network) }

// lock keeps two processes, such as a daemon and its successor, from making the
// same namespace twice. The returned function releases it.
func (h Host) lock() (func(), error) {
	if err := os.MkdirAll(h.Dir, 0o710); err != nil {
		return nil, fmt.Errorf("overlay networks: %w", err)
	}
	f, err := os.Open(h.Dir)
	if err != nil {
		return nil, fmt.Errorf("overlay networks: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("overlay networks: lock %s: %w", h.Dir, err)
	}
	return func() { f.Close() }, nil
}

// space is a network namespace with a connection to its interfaces.
type space struct {
	file *os.File
	*netlink.Handle
}

// openSpace opens the namespace at path.
func openSpace(path string) (space, error) {
	f, err := os.Open(path)
	if err != nil {
		return space{}, fmt.Errorf("network namespace: %w", err)
	}
	s := space{file: f}
	err = osthread.InNetns(f, func() error {
		s.Handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		f.Close()
		return space{}, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return s, nil
}

// hostSpace opens the namespace of the calling thread.
func hostSpace() (space, error) { return openSpace("/proc/thread-self/ns/net") }

func (s space) close() {
	s.Close()
	s.file.Close()
}

// openNetwork opens the namespace of a network, and locks the host's networks until
// done is called.
func (h Host) openNetwork(id string) (in space, done func(), err error) {
	unlock, err := h.lock()
	if err != nil {
		return space{}, nil, err
	}
	if in, err = openSpace(h.path(id)); err != nil {
		unlock()
		return space{}, nil, err
	}
	return in, func() { in.close(); unlock() }, nil
}

// do calls f on a thread in the namespace.
func (s space) do(f func() error) error { return osthread.InNetns(s.file, f) }

// find returns an interface, or nil if there is none of that name.
func (s space) find(name string) (netlink.Link, error) {
	l, err := s.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	return l, nil
}

// names of a subnet's interfaces in the network's namespace, by the subnet's first
// address, because the VNI of a subnet may change.
func bridgeName(s overlay.Subnet) string { return fmt.Sprintf("br%x", s.Prefix.Masked().Addr().As4()) }
func vxlanName(s overlay.Subnet) string  { return fmt.Sprintf("vx%x", s.Prefix.Masked().Addr().As4()) }

// Ensure makes what is missing of a network on this host, without endpoints and
// peers, replaces what is wrong, and reports whether there was anything.
func (h Host) Ensure(n overlay.Network) (changed bool, err error) {
	if err := n.Check(); err != nil {
		return false, err
	}
	n = n.WithDefaults()
	fail := func(err error) (bool, error) { return changed, fmt.Errorf("overlay network %s: %w", n.ID, err) }
	host, err := hostSpace()
	if err != nil {
		return fail(err)
	}
	defer host.close()
	unlock, err := h.lock()
	if err != nil {
		return fail(err)
	}
	defer unlock()
	if !bridge.IsNamespace(h.path(n.ID)) {
		if err := bridge.Join(bridge.Sandbox{Path: h.path(n.ID)}); err != nil {
			return fail(err)
		}
		changed = true
	}
	in, err := openSpace(h.path(n.ID))
	if err != nil {
		return fail(err)
	}
	defer in.close()
	if c, err := in.prepare(len(n.Subnets) > 1); err != nil {
		return fail(err)
	} else if c {
		changed = true
	}
	for _, s := range n.Subnets {
		c, err := in.ensureSubnet(host, n, s)
		changed = changed || c
		if err != nil {
			return fail(fmt.Errorf("subnet %s: %w", s.Prefix, err))
		}
	}
	return changed, nil
}

// prepare sets what holds for the whole namespace.
func (s space) prepare(routes bool) (changed bool, err error) {
	want := [][2]string{
		// The reply of a container of another subnet arrives where it is expected, and
		// the host's default for new namespaces may be strict or loose.
		{"net/ipv4/conf/all/rp_filter", "0"},
		{"net/ipv4/conf/default/rp_filter", "0"},
		{"net/ipv4/conf/all/send_redirects", "0"},
		{"net/ipv4/conf/default/send_redirects", "0"},
	}
	if routes {
		want = append(want, [2]string{"net/ipv4/ip_forward", "1"})
	}
	err = s.do(func() error {
		for _, w := range want {
			c, err := bridge.Sysctl(w[0], w[1])
			changed = changed || c
			if err != nil {
				return err
			}
		}
		for _, name := range []string{"all", "default"} {
			c, err := bridge.Sysctl("net/ipv6/conf/"+name+"/disable_ipv6", "1")
			changed = changed || c
			if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6 has no such file
				return err
			}
		}
		return nil
	})
	return changed, err
}

func (s space) ensureSubnet(host space, n overlay.Network, sub overlay.Subnet) (changed bool, err error) {
	br, err := s.find(bridgeName(sub))
	if err != nil {
		return false, err
	}
	if br == nil {
		if br, err = s.addBridge(n, sub); err != nil {
			return false, err
		}
		changed = true
	}
	if c, err := s.ensureGateway(br, sub); err != nil {
		return changed, err
	} else if c {
		changed = true
	}
	vx, err := s.find(vxlanName(sub))
	if err != nil {
		return changed, err
	}
	if vx != nil && !rightVXLAN(vx, n, sub) {
		if err := s.LinkDel(vx); err != nil {
			return changed, fmt.Errorf("remove interface %s: %w", vxlanName(sub), err)
		}
		vx = nil
	}
	if vx == nil {
		if vx, err = s.addVXLAN(host, n, sub); err != nil {
			return changed, err
		}
		changed = true
	}
	if vx.Attrs().MasterIndex != br.Attrs().Index {
		if err := s.LinkSetMasterByIndex(vx, br.Attrs().Index); err != nil {
			return changed, fmt.Errorf("add %s to the bridge: %w", vxlanName(sub), err)
		}
		changed = true
	}
	for _, l := range []netlink.Link{br, vx} {
		if l.Attrs().MTU != n.MTU {
			if err := s.LinkSetMTU(l, n.MTU); err != nil {
				return changed, fmt.Errorf("set MTU %d of %s: %w", n.MTU, l.Attrs().Name, err)
			}
			changed = true
		}
		if l.Attrs().Flags&net.FlagUp == 0 {
			if err := s.LinkSetUp(l); err != nil {
				return changed, fmt.Errorf("bring up %s: %w", l.Attrs().Name, err)
			}
			changed = true
		}
	}
	return changed, nil
}

func (s space) addBridge(n overlay.Network, sub overlay.Subnet) (netlink.Link, error) {
	// A MAC of its own, because without one the bridge would take that of the port
	// with the lowest, and the ARP caches of containers would be wrong about the
	// gateway. It differs between hosts, because frames that another host's gateway
	// sent arrive here, too.
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // never fails
	mac[0] = mac[0]&^1 | 2
	snooping := false
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = bridgeName(sub), n.MTU, mac
	if err := s.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
		return nil, fmt.Errorf("add bridge: %w", err)
	}
	return s.LinkByName(attrs.Name)
}

// ensureGateway gives the bridge the subnet's gateway address and no other.
func (s space) ensureGateway(br netlink.Link, sub overlay.Subnet) (changed bool, err error) {
	var have []netlink.Addr
	have, err = dump.Whole(func() ([]netlink.Addr, error) { return s.AddrList(br, netlink.FAMILY_V4) })
	if err != nil {
		return false, fmt.Errorf("list addresses: %w", err)
	}
	missing := sub.Gateway.IsValid()
	for _, a := range have {
		ones, _ := a.Mask.Size()
		if missing && a.IP.Equal(sub.Gateway.AsSlice()) && ones == sub.Prefix.Bits() {
			missing = false
			continue
		}
		if err := s.AddrDel(br, &a); err != nil {
			return changed, fmt.Errorf("remove address %s: %w", a.IPNet, err)
		}
		changed = true
	}
	if !missing {
		return changed, nil
	}
	if err := s.AddrAdd(br, &netlink.Addr{IPNet: ipNet(sub.Gateway, sub.Prefix.Bits())}); err != nil {
		return changed, fmt.Errorf("add address %s: %w", sub.Gateway, err)
	}
	return true, nil
}

func rightVXLAN(l netlink.Link, n overlay.Network, sub overlay.Subnet) bool {
	vx, ok := l.(*netlink.Vxlan)
	return ok && vx.VxlanId == int(sub.VNI) && vx.Port == int(n.Port) && vx.Proxy && !vx.Learning
}

// addVXLAN creates the interface in the namespace with one request to the host's:
// its socket stays in the host's namespace, and there is no moment at which an
// interrupted creation would leave it on the host.
func (s space) addVXLAN(host space, n overlay.Network, sub overlay.Subnet) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Namespace = vxlanName(sub), n.MTU, netlink.NsFd(s.file.Fd())
	err := host.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: int(sub.VNI), Port: int(n.Port), Proxy: true, NoAge: true})
	if errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("VXLAN number %d on port %d is in use on this host, by another engine or by an interface that is just being removed: %w", sub.VNI, n.Port, err)
	}
	if err != nil {
		return nil, fmt.Errorf("add VXLAN interface with number %d: %w", sub.VNI, err)
	}
	return s.LinkByName(attrs.Name)
}

// Networks returns the IDs of the networks that have a namespace here, or the rest
// of an interrupted Ensure or Remove.
func (h Host) Networks() ([]string, error) {
	entries, err := os.ReadDir(h.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("overlay networks: %w", err)
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids, nil
}

// Remove removes a network from this host. A network that is not there is not an
// error. The error is ErrInUse if the network has endpoints.
func (h Host) Remove(network string) error {
	fail := func(err error) error { return fmt.Errorf("remove overlay network %s: %w", network, err) }
	unlock, err := h.lock()
	if err != nil {
		return fail(err)
	}
	defer unlock()
	if bridge.IsNamespace(h.path(network)) {
		if err := removeVXLANs(h.path(network)); err != nil {
			return fail(err)
		}
	}
	if err := bridge.Leave(h.path(network)); err != nil {
		return fail(err)
	}
	return nil
}

// removeVXLANs removes the VXLAN interfaces at once. The kernel removes what is in
// a namespace some time after the namespace's last user, and until then would
// refuse a new interface with the same number.
func removeVXLANs(path string) error {
	in, err := openSpace(path)
	if err != nil {
		return err
	}
	defer in.close()
	interfaces, err := dump.Whole(in.LinkList)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range interfaces {
		if l.Type() == "veth" {
			return ErrInUse
		}
	}
	for _, l := range interfaces {
		if l.Type() != "vxlan" {
			continue
		}
		if err := in.LinkDel(l); err != nil {
			return fmt.Errorf("remove interface %s: %w", l.Attrs().Name, err)
		}
	}
	return nil
}
