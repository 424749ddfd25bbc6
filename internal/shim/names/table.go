// SPDX-License-Identifier: Apache-2.0

package names

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
)

// table looks names up in the files.
type table struct {
	path string // of the View

	mu    sync.Mutex
	seen  map[string]stamp
	view  View
	nets  []network
	turns uint32
}

// stamp identifies a version of a file.
type stamp struct {
	ino   uint64
	size  int64
	mtime syscall.Timespec
}

// network is a Network, indexed.
type network struct {
	path    string // of its file
	name    string // lower case
	ttl     uint32 // of answers, in seconds
	subnets []netip.Prefix
	byName  map[string][]netip.Addr // by lower-case name; nil: the member exists but does not run
	byAddr  map[netip.Addr]string
}

func stampOf(path string) (stamp, bool) {
	var st syscall.Stat_t
	if syscall.Stat(path, &st) != nil {
		return stamp{}, false
	}
	return stamp{st.Ino, st.Size, st.Mtim}, true
}

// refresh reads all files again if one of them has changed. If the View can't be
// read, everything stays as it was. So does a network whose file is there and
// can't be read: otherwise its names would be asked of servers outside. Either is
// tried again at the next question.
func (t *table) refresh() {
	changed := false
	paths := append([]string{t.path}, t.view.Networks...)
	for _, p := range paths {
		if now, ok := stampOf(p); ok && t.seen[p] != now {
			changed = true
		}
	}
	if !changed {
		return
	}
	seen := map[string]stamp{}
	load := func(path string, v any) error {
		s, _ := stampOf(path)
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, v)
		}
		if err == nil {
			seen[path] = s
		}
		return err
	}
	var v View
	if load(t.path, &v) != nil {
		return
	}
	before := map[string]network{}
	for _, n := range t.nets {
		before[n.path] = n
	}
	var nets []network
	for _, p := range v.Networks {
		var n Network
		err := load(p, &n)
		old, known := before[p]
		switch {
		case err == nil:
			nets = append(nets, indexed(p, n))
		case known && !errors.Is(err, fs.ErrNotExist):
			nets = append(nets, old)
		}
	}
	t.view, t.nets, t.seen = v, nets, seen
}

func indexed(path string, n Network) network {
	out := network{path: path, name: strings.ToLower(n.Name), ttl: n.TTL, byName: map[string][]netip.Addr{}, byAddr: map[netip.Addr]string{}}
	if out.ttl == 0 {
		out.ttl = ttl
	}
	for _, s := range n.Subnets {
		if p, err := netip.ParsePrefix(s); err == nil {
			out.subnets = append(out.subnets, p)
		}
	}
	for _, m := range n.Members {
		var addrs []netip.Addr
		for _, a := range m.Addresses {
			if addr, err := netip.ParseAddr(a); err == nil {
				addrs = append(addrs, addr)
				out.byAddr[addr] = m.Name + "." + n.Name
			}
		}
		for _, name := range append([]string{m.Name}, m.Names...) {
			name = strings.ToLower(name)
			out.byName[name] = append(out.byName[name], addrs...)
		}
	}
	return out
}

// found is what the files say of a name.
type found struct {
	addrs []netip.Addr
	// known: the name belongs to a network of ours. If it has no address of the
	// family, it is not forwarded.
	known bool
	ttl   uint32 // of addrs, in seconds
}

// lookup finds a name without its final dot.
func (t *table) lookup(name string, v6 bool) (f found) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refresh()
	name = strings.ToLower(name)
	for alias, real := range t.view.Links {
		if strings.EqualFold(alias, name) {
			name = strings.ToLower(real)
			break
		}
	}
	for _, n := range t.nets {
		bare, qualified := strings.CutSuffix(name, "."+n.name)
		all, ok := n.byName[name]
		if !ok && qualified {
			all, ok = n.byName[bare]
			f.known = f.known || !public(n.name) || t.member(bare) // must not be forwarded
		}
		if !ok {
			continue
		}
		f.known = true
		for _, a := range all {
			if a.Is6() == v6 {
				f.addrs = append(f.addrs, a)
			}
		}
		if len(f.addrs) > 0 {
			f.ttl = n.ttl
			break
		}
	}
	if n := len(f.addrs); n > 1 {
		// Each answer starts with the next address (round robin), to spread the
		// clients.
		t.turns++
		k := int(t.turns) % n
		f.addrs = append(append([]netip.Addr{}, f.addrs[k:]...), f.addrs[:k]...)
	}
	return f
}

// member reports whether one of the networks has a container of that name.
func (t *table) member(name string) bool {
	for _, n := range t.nets {
		if _, ok := n.byName[name]; ok {
			return true
		}
	}
	return false
}

// public reports whether a network's name could be a public domain: a network that
// is called "dev" must not hide all of .dev. Top-level domains have two or more
// characters and consist of letters only, or begin with xn--.
func public(network string) bool {
	last := network[strings.LastIndexByte(network, '.')+1:]
	if strings.HasPrefix(last, "xn--") {
		return true
	}
	for i := range len(last) {
		if last[i] < 'a' || last[i] > 'z' {
			return false
		}
	}
	return len(last) > 1
}

// reverse finds the name of an address. known means that the address belongs to one
// of the networks.
func (t *table) reverse(addr netip.Addr) (name string, known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refresh()
	for _, n := range t.nets {
		if name, ok := n.byAddr[addr]; ok {
			return name, true
		}
		for _, p := range n.subnets {
			known = known || p.Contains(addr)
		}
	}
	return "", known
}

// upstream returns the servers for all other names.
func (t *table) upstream() []netip.AddrPort {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refresh()
	var out []netip.AddrPort
	for _, s := range t.view.Upstream {
		if a, err := netip.ParseAddrPort(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// reversed parses the address in a name below in-addr.arpa or ip6.arpa.
func reversed(name string) (netip.Addr, bool) {
	name = strings.ToLower(name)
	if v4, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(v4, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
		return a, err == nil
	}
	v6, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(v6) != 63 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range 32 {
		c := strings.IndexByte("0123456789abcdef", v6[62-2*i])
		if c < 0 || i < 31 && v6[61-2*i] != '.' {
			return netip.Addr{}, false
		}
		b[i/2] |= byte(c) << (4 * (1 - i%2))
	}
	return netip.AddrFrom16(b), true
}
