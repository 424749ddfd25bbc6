// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/dump"
	"holdfast/internal/network/swarmlb"
	"holdfast/internal/osthread"
)

// Priorities of our routing rules. They come after the table of local addresses and
// before the main table.
const (
	prioException = 100 + iota
	prioBack
	prioForth
)

// rule is a routing rule of ours: for packets with a mark, if it is not zero, from
// an address, if it is valid, and from an interface, if it is not empty.
type rule struct {
	priority int
	mark     uint32
	from     netip.Addr
	by       string
	// table is that of a route of ours, or zero to go on with the rules of priority
	// prioForth.
	table uint32
}

// route is the one route of a routing table of ours.
type route struct {
	table uint32
	// gateway is that of the default route. Without one, the route is to the subnet.
	gateway netip.Addr
	subnet  netip.Prefix
}

// ways are the routes by one interface, with the rules that use them.
type ways struct {
	by     string
	rules  []rule
	routes []route
	// ours reports whether a table belongs to those that may be removed, with the
	// rules that have its number as mark or table.
	ours func(table uint32) bool
}

// taskWays sends the replies of a task back by the nodes that connections came by.
func taskWays(t swarmlb.Task) ways {
	w := ways{by: t.Ingress, ours: func(table uint32) bool { return table&swarmlb.MarkMask == swarmlb.Mark }}
	for _, e := range t.Entries {
		if t.Ingress == "" {
			break
		}
		mark := swarmlb.MarkOf(e.Addr)
		w.rules = append(w.rules, rule{priority: prioForth, mark: mark, table: mark})
		w.routes = append(w.routes, route{table: mark, gateway: e.Addr})
	}
	return w
}

// hostWays sends what the host translated to the ingress network. No other packet
// may use the route, because the host's own network may have the same addresses.
//
// The kernel checks the source of what comes from the ingress network by a lookup of
// the way back to it. So such packets have another mark, with which the route is
// found, too, except for the packet's own destination: that lookup differs by its
// interface. ARP requests have no mark. They ask for the host's address on the
// network, and the way back begins there.
func hostWays(i swarmlb.Ingress) ways {
	w := ways{by: i.Interface, ours: func(table uint32) bool { return table == swarmlb.Mark || table == swarmlb.MarkBack }}
	if i.Interface == "" {
		return w
	}
	w.rules = []rule{
		{priority: prioException, mark: swarmlb.MarkBack, by: i.Interface},
		{priority: prioBack, mark: swarmlb.MarkBack, table: swarmlb.Mark},
		{priority: prioForth, mark: swarmlb.Mark, table: swarmlb.Mark},
		{priority: prioForth, from: i.Addr, by: "lo", table: swarmlb.Mark},
	}
	w.routes = []route{{table: swarmlb.Mark, subnet: i.Subnet}}
	return w
}

// route makes the routing tables right: routes first, because rules lead to them.
func (s *space) route(want ways) (changed bool, err error) {
	rules, err := s.presentRules(want.ours)
	if err != nil {
		return false, err
	}
	if len(want.routes)+len(rules) == 0 {
		return false, nil
	}
	routes, err := s.presentRoutes(want.ours)
	if err != nil {
		return false, err
	}
	index := 0
	if len(want.routes) > 0 {
		l, err := s.LinkByName(want.by)
		if err != nil {
			return false, fmt.Errorf("interface %s: %w", want.by, err)
		}
		index = l.Attrs().Index
	}
	for _, w := range want.routes {
		r := w.netlink(index)
		have, ok := routes[w.table]
		delete(routes, w.table)
		if ok && have.LinkIndex == index && have.Gw.Equal(r.Gw) && destination(have.Dst) == destination(r.Dst) {
			continue
		}
		if err := s.RouteReplace(r); err != nil {
			return changed, fmt.Errorf("add route to table 0x%08x: %w", w.table, err)
		}
		changed = true
	}
	for _, w := range want.rules {
		_, ok := rules[w]
		delete(rules, w)
		if ok {
			continue
		}
		if err := s.RuleAdd(w.netlink()); err != nil {
			return changed, fmt.Errorf("add routing rule %d for mark 0x%08x: %w", w.priority, w.mark, err)
		}
		changed = true
	}
	for w, r := range rules {
		if err := s.RuleDel(&r); err != nil {
			return changed, fmt.Errorf("remove routing rule %d for mark 0x%08x: %w", w.priority, w.mark, err)
		}
		changed = true
	}
	for table, r := range routes {
		if err := s.RouteDel(&r); err != nil {
			return changed, fmt.Errorf("remove route from table 0x%08x: %w", table, err)
		}
		changed = true
	}
	return changed, nil
}

func (s *space) presentRules(ours func(table uint32) bool) (map[rule]netlink.Rule, error) {
	all, err := dump.Whole(func() ([]netlink.Rule, error) { return s.RuleList(unix.AF_INET) })
	if err != nil {
		return nil, fmt.Errorf("list routing rules: %w", err)
	}
	present := map[rule]netlink.Rule{}
	for _, r := range all {
		if !ours(uint32(r.Table)) && !ours(r.Mark) {
			continue
		}
		key := rule{priority: r.Priority, mark: r.Mark, by: r.IifName, table: uint32(r.Table)}
		if r.Goto > 0 {
			key.table = 0
		}
		if r.Src != nil {
			key.from, _ = netip.AddrFromSlice(r.Src.IP.To4())
		}
		present[key] = r
	}
	return present, nil
}

func (r rule) netlink() *netlink.Rule {
	out := netlink.NewRule()
	out.Family, out.Mark, out.Priority, out.IifName = unix.AF_INET, r.mark, r.priority, r.by
	if r.table != 0 {
		out.Table = int(r.table)
	} else {
		out.Goto = prioForth
	}
	if r.from.IsValid() {
		out.Src = &net.IPNet{IP: r.from.AsSlice(), Mask: net.CIDRMask(32, 32)}
	}
	return out
}

// presentRoutes returns the routes of our tables, by table.
func (s *space) presentRoutes(ours func(table uint32) bool) (map[uint32]netlink.Route, error) {
	all, err := dump.Whole(func() ([]netlink.Route, error) {
		return s.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	present := map[uint32]netlink.Route{}
	for _, r := range all {
		if ours(uint32(r.Table)) {
			present[uint32(r.Table)] = r
		}
	}
	return present, nil
}

func (r route) netlink(index int) *netlink.Route {
	out := &netlink.Route{LinkIndex: index, Table: int(r.table)}
	if r.gateway.IsValid() {
		out.Gw, out.Flags = r.gateway.AsSlice(), int(netlink.FLAG_ONLINK)
		out.Dst = &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
		return out
	}
	out.Dst = &net.IPNet{IP: r.subnet.Masked().Addr().AsSlice(), Mask: net.CIDRMask(r.subnet.Bits(), 32)}
	out.Scope = netlink.SCOPE_LINK
	return out
}

func destination(n *net.IPNet) string {
	if n == nil {
		return "0.0.0.0/0"
	}
	return n.String()
}

// answerMarked sets what a task's namespace needs to answer connections that have a
// mark.
func (s *space) answerMarked() (changed bool, err error) {
	return s.set([][2]string{
		// The check of source addresses looks up the route by the packet's mark.
		{"net/ipv4/conf/all/src_valid_mark", "1"},
		// A connection has the mark of its first packet, so that its packets are routed
		// by the mark even if the namespace has no other route to the client.
		{"net/ipv4/tcp_fwmark_accept", "1"},
		// So do the kernel's own answers: resets, ICMP.
		{"net/ipv4/fwmark_reflect", "1"},
	})
}

// openInterface sets what the host accepts on its interface on the ingress network.
func (s *space) openInterface(name string) (changed bool, err error) {
	conf := "net/ipv4/conf/" + name + "/"
	return s.set([][2]string{
		// Replies to connections from 127.0.0.1 arrive here.
		{conf + "route_localnet", "1"},
		// The check of source addresses looks up the route by the packet's mark.
		{conf + "src_valid_mark", "1"},
		// The host answers for its address on the network, and for no other.
		{conf + "arp_ignore", "1"},
		{conf + "accept_redirects", "0"},
		{conf + "send_redirects", "0"},
		{conf + "accept_source_route", "0"},
	})
}

// set sets values of the namespace.
func (s *space) set(values [][2]string) (changed bool, err error) {
	err = osthread.InNetns(s.file, func() error {
		for _, v := range values {
			c, err := bridge.Sysctl(v[0], v[1])
			changed = changed || c
			if err != nil {
				return err
			}
		}
		return nil
	})
	return changed, err
}
