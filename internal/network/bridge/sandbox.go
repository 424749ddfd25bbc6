// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"holdfast/internal/failpoint"
	"holdfast/internal/osthread"
)

// Sandbox is a container's network namespace and the interfaces in it.
type Sandbox struct {
	// Path is the file that the namespace is mounted on. The mount keeps the
	// namespace when the container's process restarts.
	Path string
	// Owner is recorded on the host's ends of veths.
	Owner      string
	Interfaces []Interface
}

// Interface is a container's interface: a veth whose host end is a port of a bridge,
// or a macvlan or ipvlan interface.
type Interface struct {
	HostName string // on the host
	Name     string // in the container
	Bridge   string
	MAC      net.HardwareAddr
	MTU      int
	Addrs    []netip.Prefix
	// Gateways are the default routes by this interface, at most one per family.
	Gateways []netip.Addr
	// Isolated: the port may only exchange frames with the host, not with other
	// ports.
	Isolated bool
	// Sysctls are paths below /proc/sys with values. They are set before the
	// interface is up.
	Sysctls [][2]string
	// Quiet: the addresses are not announced to the neighbours.
	Quiet bool

	// Kind is empty for a veth. A macvlan or ipvlan interface sits on the host's
	// interface Parent, in the driver's Mode, and has no HostName and no Bridge.
	Kind, Parent, Mode string
}

func (l Interface) hasIPv6() bool {
	for _, a := range l.Addrs {
		if a.Addr().Is6() {
			return true
		}
	}
	return false
}

// Join creates what is missing of the sandbox: the namespace, its loopback
// interface, the links with their addresses and routes. It is idempotent, also
// after it was interrupted at any point. The bridges must exist.
func Join(s Sandbox) error {
	return osthread.RunInNetns(func() error { return join(s) })
}

// join runs on a thread of its own. The thread is in the host's namespace, and
// join leaves it in the container's.
func join(s Sandbox) error {
	host, err := dial()
	if err != nil {
		return err
	}
	defer host.Close()
	bridges := map[string]int{}
	for _, l := range s.Interfaces {
		if l.Kind != "" {
			if bridges[l.Parent], err = indexOf(l.Parent); err != nil {
				return fmt.Errorf("interface %s: %w", l.Parent, err)
			}
			continue
		}
		if bridges[l.Bridge], err = indexOf(l.Bridge); err != nil {
			return fmt.Errorf("bridge %s: %w", l.Bridge, err)
		}
	}
	// A stale veth is left if an earlier Join was interrupted before it mounted the
	// namespace. Its container end is gone, or about to go with that namespace.
	stale := func(name string) error {
		index, err := indexOf(name)
		if err != nil {
			return err
		}
		return host.delLink(index)
	}
	hostNS, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer hostNS.Close()

	ns, err := enter(s.Path)
	if err != nil {
		return err
	}
	defer ns.Close()
	inside, err := dial()
	if err != nil {
		return err
	}
	defer inside.Close()
	if err := inside.up(1); err != nil { // lo always has index 1
		return fmt.Errorf("bring up lo: %w", err)
	}
	for _, l := range s.Interfaces {
		index, err := indexOf(l.Name)
		if errors.Is(err, unix.ENODEV) {
			if err := setIPv6(l); err != nil {
				return err
			}
			if l.Kind != "" {
				if err := inNamespace(hostNS, ns, func() error { return addSubLink(l, bridges[l.Parent], int(ns.Fd())) }); err != nil {
					return fmt.Errorf("add %s interface on %s: %w", l.Kind, l.Parent, err)
				}
			} else {
				err = host.addVeth(l, bridges[l.Bridge], int(ns.Fd()))
			}
			if l.Kind == "" && errors.Is(err, unix.EEXIST) {
				if err := inNamespace(hostNS, ns, func() error { return stale(l.HostName) }); err != nil && !errors.Is(err, unix.ENODEV) {
					return fmt.Errorf("remove stale interface %s: %w", l.HostName, err)
				}
				err = host.addVeth(l, bridges[l.Bridge], int(ns.Fd()))
			}
			if l.Kind == "" && err != nil {
				return fmt.Errorf("add interface %s to %s: %w", l.HostName, l.Bridge, err)
			}
			if index, err = indexOf(l.Name); err != nil {
				return fmt.Errorf("interface %s: %w", l.Name, err)
			}
		} else if err != nil {
			return fmt.Errorf("interface %s: %w", l.Name, err)
		}
		if l.Kind == "" {
			// The host's end comes up first, because without it the kernel refuses to
			// bring up the other end (ENOTCONN).
			if err := inNamespace(hostNS, ns, func() error { return host.upPort(l.HostName, s.Owner) }); err != nil {
				return err
			}
		}
		if err := configure(inside, index, l); err != nil {
			return err
		}
	}
	if len(s.Interfaces) == 0 {
		return nil
	}
	err = inNamespace(hostNS, ns, func() error {
		for _, l := range s.Interfaces {
			if l.Kind != "" {
				continue
			}
			index, err := indexOf(l.HostName)
			if err != nil {
				return fmt.Errorf("interface %s: %w", l.HostName, err)
			}
			if err := host.port(index, l.Isolated); err != nil {
				return fmt.Errorf("bridge port %s: %w", l.HostName, err)
			}
			settle(l.HostName)
			settle(l.Bridge)
		}
		return nil
	})
	if err == nil {
		announce(s.Interfaces) // last, because a port that is not up forwards nothing
	}
	return err
}

// upPort brings up the host's end of a link, which is a port of a bridge. Call it
// on a thread in the host's namespace.
func (c *conn) upPort(name, owner string) error {
	failpoint.Here("network.linked")
	if _, err := HardenPort(name); err != nil {
		return err
	}
	index, err := indexOf(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	up := func() error { return c.up(index) }
	if owner != "" {
		up = func() error { return c.upOwned(index, alias(owner)) }
	}
	if err := up(); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	failpoint.Here("network.up")
	return nil
}

func configure(c *conn, index int, l Interface) error {
	if l.Kind == "" && l.hasIPv6() {
		// The engine sets the interface's addresses and gateway, and no neighbour on
		// the bridge may make itself its router. A container that needs router
		// advertisements sets a sysctl, which is applied later.
		if _, err := sysctl("net/ipv6/conf/"+l.Name+"/accept_ra", "0"); err != nil {
			return err
		}
	}
	for _, s := range l.Sysctls {
		if _, err := sysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	if err := c.up(index); err != nil {
		return fmt.Errorf("bring up %s: %w", l.Name, err)
	}
	settle(l.Name)
	for _, a := range l.Addrs {
		if err := c.addAddress(index, a); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add address %s to %s: %w", a, l.Name, err)
		}
	}
	for _, g := range l.Gateways {
		if err := c.setDefaultRoute(index, g); err != nil {
			return fmt.Errorf("add default route by %s: %w", g, err)
		}
	}
	return nil
}

// setIPv6 switches IPv6 on or off for the namespace's next interface. It must be
// set before the interface exists, because one that comes up gets a link-local
// address.
func setIPv6(l Interface) error {
	value := "1"
	if l.hasIPv6() {
		value = "0"
	}
	_, err := sysctl("net/ipv6/conf/default/disable_ipv6", value)
	if errors.Is(err, os.ErrNotExist) && !l.hasIPv6() {
		return nil // a kernel without IPv6
	}
	return err
}

// enter moves the thread into the namespace that is mounted at path. If there is
// none it creates and mounts one.
func enter(path string) (*os.File, error) {
	if IsNamespace(path) {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("network namespace: %w", err)
		}
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			f.Close()
			return nil, fmt.Errorf("enter network namespace %s: %w", path, err)
		}
		return f, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o710); err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	target, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	target.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("new network namespace: %w", err)
	}
	if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		return nil, fmt.Errorf("mount network namespace on %s: %w", path, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	return f, nil
}

// Leave unmounts the namespace and removes its file. The kernel removes the
// interfaces with the namespace, when the last process in it has ended. A missing
// namespace is not an error.
func Leave(path string) error {
	for IsNamespace(path) {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount network namespace %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("network namespace: %w", err)
	}
	return nil
}

// IsNamespace reports whether a namespace is mounted at path.
func IsNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// inNamespace runs f in ns and then moves the thread to back, if that is not nil.
// Call it on a thread of osthread.RunInNetns.
func inNamespace(ns, back *os.File, f func() error) error {
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	err := f()
	if back == nil {
		return err
	}
	if e := unix.Setns(int(back.Fd()), unix.CLONE_NEWNET); e != nil {
		return errors.Join(err, fmt.Errorf("enter network namespace: %w", e))
	}
	return err
}
