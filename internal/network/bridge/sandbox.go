package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Sandbox is a container's network namespace and the interfaces in it.
type Sandbox struct {
	// Path is the file that the namespace is mounted on. It keeps the
	// namespace over the restarts of the container's process.
	Path  string
	Links []Link
}

// Link is an interface of a container: a veth whose other end is a port of a
// bridge.
type Link struct {
	HostName string // on the host
	Name     string // in the container
	Bridge   string
	MAC      net.HardwareAddr
	MTU      int
	Addrs    []netip.Prefix
	// Gateways are the default routes by this link, at most one of a family.
	Gateways []netip.Addr
	// Isolated: the port talks to the host only, not to other ports.
	Isolated bool
	// Sysctls are paths below /proc/sys with values, set before the link is up.
	Sysctls [][2]string

	// Kind is empty for a veth; macvlan and ipvlan sit on the interface Parent
	// of the host, in the driver's Mode, and have no HostName and no Bridge.
	Kind, Parent, Mode string
}

func (l Link) hasIPv6() bool {
	for _, a := range l.Addrs {
		if a.Addr().Is6() {
			return true
		}
	}
	return false
}

// Join makes what of the sandbox is not there yet: the namespace, its loopback
// interface, the links with their addresses and routes. It may be called again
// after it was cut off at any point. The bridges must exist.
func Join(s Sandbox) error {
	return onThread(func() error { return join(s) })
}

// join runs on a thread of its own that stands in the host's namespace, and
// leaves it in the container's.
func join(s Sandbox) error {
	host, err := dial()
	if err != nil {
		return err
	}
	defer host.Close()
	bridges := map[string]int{}
	for _, l := range s.Links {
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
	// Stale: the container's end is gone, or about to go, with a namespace of
	// the same endpoint that was cut off before it was mounted.
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
	if err := inside.up(1); err != nil { // lo is always the first
		return fmt.Errorf("bring up lo: %w", err)
	}
	for _, l := range s.Links {
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
		if err := configure(inside, index, l); err != nil {
			return err
		}
	}
	if len(s.Links) == 0 {
		return nil
	}
	return inNamespace(hostNS, nil, func() error {
		for _, l := range s.Links {
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
}

func configure(c *conn, index int, l Link) error {
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

// setIPv6 says whether the next interface of the namespace speaks IPv6. It
// must be known before there is one: an interface that comes up gives itself
// a link-local address.
func setIPv6(l Link) error {
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

// enter moves the thread into the namespace that is mounted at path, and makes
// and mounts it if there is none.
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
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
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

// Leave unmounts the namespace and removes its file. The interfaces go with
// the namespace, when the last process in it has ended. What is not there is
// fine.
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

// onThread runs f on a thread that nothing else uses meanwhile. A thread that
// can't be brought back to where it was ends with its goroutine. It is never
// the process's first one: that one can't end, and what /proc/self says of the
// process is said of it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			err := onThread(f) // elsewhere, as this thread is taken
			runtime.UnlockOSThread()
			done <- err
			return
		}
		ns, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- fmt.Errorf("network namespace of the thread: %w", err)
			return
		}
		err = f()
		if unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		ns.Close()
		done <- err
	}()
	return <-done
}

// inNamespace runs f in ns and comes back to back, if it is given. It is for a
// thread that onThread gave.
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
