// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"holdfast/internal/errs"
	"holdfast/internal/osthread"
)

// Exists reports whether the host has an interface of that name.
func Exists(name string) (bool, error) {
	_, err := indexOf(name)
	if errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	return err == nil, err
}

// AddDummy adds an interface that leads nowhere: a dummy, or a bridge without
// ports if the kernel has no dummies. An existing one is not an error.
func AddDummy(name string) error {
	err := addUp(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: name}})
	if errdefs.IsNotImplemented(err) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		err = addUp(&netlink.Bridge{LinkAttrs: attrs})
	}
	return err
}

// AddVLAN adds a VLAN of an interface. An existing one is not an error.
func AddVLAN(parent, name string, id int) error {
	index, err := indexOf(parent)
	if err != nil {
		return fmt.Errorf("interface %s: %w", parent, err)
	}
	return addUp(&netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: name, ParentIndex: index}, VlanId: id})
}

func addUp(l netlink.Link) error {
	name := l.Attrs().Name
	err := netlink.LinkAdd(l)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return errs.NotImplemented("this kernel has no interfaces of type %s, which %s would be: name an existing parent", l.Type(), name)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add interface %s: %w", name, err)
	}
	// A VLAN may have routers of its own, which the host must ignore.
	if _, err := ignoreRouters(name); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	return nil
}

// RemoveInterface deletes an interface that the engine has made. A missing one is not
// an error.
func RemoveInterface(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("remove interface %s: %w", name, err)
	}
	return nil
}

// RemoveInside deletes an interface of the namespace at path. A missing one is
// not an error.
func RemoveInside(path, name string) error {
	_, err := inside(path, name, (*netlink.Handle).LinkDel)
	if err != nil {
		return fmt.Errorf("remove interface %s of the container: %w", name, err)
	}
	return nil
}

// HasInside reports whether the namespace at path has an interface of that
// name.
func HasInside(path, name string) (bool, error) {
	return inside(path, name, func(*netlink.Handle, netlink.Link) error { return nil })
}

// inside calls do with an interface of the namespace at path, if it exists.
func inside(path, name string, do func(*netlink.Handle, netlink.Link) error) (there bool, err error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return false, fmt.Errorf("network namespace %s: %w", path, err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return false, fmt.Errorf("network namespace %s: %w", path, err)
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, do(h, link)
}

// CheckKind finds out whether the kernel has macvlan or ipvlan by creating one
// between two temporary interfaces. Otherwise it returns
// errdefs.ErrNotImplemented.
func CheckKind(kind string) error {
	return osthread.RunInNetns(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("ask the kernel for %s: %w", kind, err)
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		parent := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "parent"}, PeerName: "peer"}
		if err := h.LinkAdd(parent); err != nil {
			return fmt.Errorf("ask the kernel for %s: %w", kind, err)
		}
		index, err := h.LinkByName("parent")
		if err != nil {
			return err
		}
		l, err := subLink(Interface{Kind: kind, Name: "child", Mode: map[string]string{"macvlan": "bridge", "ipvlan": "l2"}[kind]}, index.Attrs().Index)
		if err != nil {
			return err
		}
		err = h.LinkAdd(l)
		if errors.Is(err, unix.EOPNOTSUPP) {
			return errs.NotImplemented("this kernel has no %s: networks of that driver can't be created on this host", kind)
		}
		return err
	})
}

var macvlanModes = map[string]netlink.MacvlanMode{
	"bridge": netlink.MACVLAN_MODE_BRIDGE, "vepa": netlink.MACVLAN_MODE_VEPA,
	"private": netlink.MACVLAN_MODE_PRIVATE, "passthru": netlink.MACVLAN_MODE_PASSTHRU,
}

var ipvlanModes = map[string]netlink.IPVlanMode{
	"l2": netlink.IPVLAN_MODE_L2, "l3": netlink.IPVLAN_MODE_L3, "l3s": netlink.IPVLAN_MODE_L3S,
}

// subLink returns a container's interface on a parent.
func subLink(l Interface, parent int) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.HardwareAddr = l.Name, parent, l.MAC
	if l.MTU > 0 {
		attrs.MTU = l.MTU
	}
	switch l.Kind {
	case "macvlan":
		return &netlink.Macvlan{LinkAttrs: attrs, Mode: macvlanModes[l.Mode]}, nil
	case "ipvlan":
		attrs.HardwareAddr = nil
		return &netlink.IPVlan{LinkAttrs: attrs, Mode: ipvlanModes[l.Mode]}, nil
	}
	return nil, fmt.Errorf("interface %s: unknown kind %q", l.Name, l.Kind)
}

// addSubLink creates the interface in the host's namespace, where the parent is,
// and moves it to the container's. The thread is in the host's namespace.
func addSubLink(l Interface, parent, netns int) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	sub, err := subLink(l, parent)
	if err != nil {
		return err
	}
	sub.Attrs().Namespace = netlink.NsFd(netns)
	return h.LinkAdd(sub)
}
