// SPDX-License-Identifier: Apache-2.0

// Package swarmlb is the load balancing of swarm services as data: which nftables
// rules send a connection to one of a service's tasks. It is pure. String methods
// give the text that nft(8) would list; package kernel, below it, puts exactly the
// same tables into the kernel.
//
// There are two tables. That of a task is in the task's own network namespace. It
// translates the virtual address of a service to the address of one of its tasks,
// and on tasks with published ports it sends replies back by the node that the
// client connected to. That of a host makes the host an entry to published ports.
//
// The rules of each service are a chain that is named after the service's address
// and a fingerprint of its rules. So the names of the chains in the kernel show
// what is right, and only what differs is changed.
package swarmlb

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
)

// IngressInterface is the name of a host's interface on the ingress network.
const IngressInterface = "hf-ingress"

// Names of the tables, of family ip.
const (
	TaskTable    = "holdfast-lb"
	IngressTable = "holdfast-ingress"
)

// Mark is the mark of packets that a host sends to the ingress network, and the
// number of the routing table that they are routed by.
const Mark uint32 = 0x48000000

// MarkBack is the mark of packets that a host gets from the ingress network.
const MarkBack = Mark | 1

// MarkMask has the bits that are the same in all marks of ours.
const MarkMask uint32 = 0xff000000

// MarkOf is the mark of connections that came by the node with that address on the
// ingress network, and the number of the routing table for their replies. The bits
// below those of Mark are the end of the address, which is unique in a subnet that
// has at most 2^24 addresses.
func MarkOf(entry netip.Addr) uint32 {
	ip := entry.As4()
	return Mark | uint32(ip[1])<<16 | uint32(ip[2])<<8 | uint32(ip[3])
}

// Service is a service with a virtual address.
type Service struct {
	VIP netip.Addr
	// Backends are the addresses of the tasks that get new connections. Without any,
	// connections are refused.
	Backends []netip.Addr
}

// Task is what a network namespace needs.
type Task struct {
	Services []Service
	// Ingress is the name of the interface on the ingress network, or empty if the
	// task publishes no port there.
	Ingress string
	Address netip.Addr // of that interface
	Entries []Entry
}

// Entry is a node's endpoint on the ingress network.
type Entry struct {
	Addr netip.Addr
	MAC  [6]byte
}

// Ingress is what a host needs to be an entry.
type Ingress struct {
	// Interface is the host's interface on the ingress network, and Addr its address.
	// An empty Interface means that the host is no entry.
	Interface string
	Addr      netip.Addr
	Subnet    netip.Prefix // of the ingress network
	Ports     []IngressPort
}

// IngressPort is a published port.
type IngressPort struct {
	Proto string // tcp, udp or sctp
	Port  uint16
	// Targets are the addresses on the ingress network and the ports of the tasks
	// that get new connections. Without any, the port is as if it were not published.
	Targets []netip.AddrPort
}

// Table is an nftables table of family ip.
type Table struct {
	Name string
	// Balanced is the map from what is balanced to the chain that does it.
	Balanced Map
	// Marks is the map of a task's Entries, and Clients that of its udp clients. They
	// are there if Name is not empty.
	Marks, Clients Map
	Chains         []Chain
	// Targets are the chains behind Balanced.
	Targets []Target
}

// Map has elements of one type.
type Map struct {
	Name, Type string
	Elements   []Element
	// Size is the largest number of elements of a map that packets add elements to,
	// which last for Seconds. It is zero for other maps.
	Size, Seconds int
}

// Element is a key with a value, in the kernel's form and as text.
type Element struct {
	Key, Value []byte
	Text       string
}

// Target is the chain of one service or port.
type Target struct {
	Chain Chain
	Key   Element // in Balanced; its value is the chain
	// Flows identify the connections that were balanced here.
	Flows Flows
}

// Flows are connections to an address or, if Port is not zero, to a port, and where
// they may lead.
type Flows struct {
	Proto byte // zero means all
	Addr  netip.Addr
	Port  uint16
	To    []netip.AddrPort // without ports for all ports
}

// Chain is a list of rules. It is attached to a hook if Hook is not empty.
type Chain struct {
	Name     string
	Type     string // filter, nat or route
	Hook     string // prerouting, output, forward, postrouting
	Priority int
	Rules    []Rule
}

// Priorities of hooks, of the kernel's enum nf_ip_hook_priorities.
const (
	prioRaw    = -300
	prioMangle = -150
	prioDstNAT = -100
	prioFilter = 0
	prioSrcNAT = 100
)

var protocols = map[string]byte{"tcp": 6, "udp": 17, "sctp": 132}

var loopback = netip.MustParsePrefix("127.0.0.0/8")

// BuildTask returns the table of a task. Without services and without entries it
// has no chains, and is not needed.
func BuildTask(t Task) Table {
	table := Table{Name: TaskTable, Balanced: Map{Name: "vips", Type: "ipv4_addr : verdict"}}
	last := map[netip.Addr]Service{}
	for _, s := range t.Services {
		if s.VIP.Is4() {
			last[s.VIP] = s
		}
	}
	for _, s := range last {
		var to []netip.AddrPort
		for _, b := range s.Backends {
			if b.Is4() {
				to = append(to, netip.AddrPortFrom(b, 0))
			}
		}
		to = sorted(to)
		rules := []Rule{{Spread{To: to}}}
		if len(to) == 0 {
			rules = []Rule{{Proto{6}, Reject{Reset: true}}, {Reject{}}}
		}
		table.Targets = append(table.Targets, target("vip-"+s.VIP.String(), rules,
			Element{Key: s.VIP.AsSlice(), Text: s.VIP.String()}, Flows{Addr: s.VIP, To: to}))
	}
	if len(last) > 0 {
		table.Chains = append(table.Chains, Chain{
			Name: "output", Type: "nat", Hook: "output", Priority: prioDstNAT,
			Rules: []Rule{{Dispatch{Map: table.Balanced.Name}}},
		})
	}
	if t.publishes() {
		table.addReplies(t)
	}
	return table.finish()
}

func (t Task) publishes() bool { return t.Ingress != "" && t.Address.Is4() && len(t.Entries) > 0 }

// addReplies adds the rules that send replies back by the node that the client
// connected to.
//
// Connection tracking remembers the node. The mark is also set on the packets that
// arrive, so that the kernel's check of their source uses the same route as the
// replies (src_valid_mark), and a tcp connection is routed by it
// (tcp_fwmark_accept).
//
// A udp server sends its answer without regard to a connection. The kernel chooses
// the route and with it the source address, which is that of the task's other
// interface, so that connection tracking would not recognise the answer. So the
// table notes each client, and corrects the source of answers before connection
// tracking sees them.
func (t *Table) addReplies(task Task) {
	t.Marks = marks(task.Entries)
	t.Clients = Map{Name: "clients", Type: "ipv4_addr . inet_service . inet_service : mark", Size: maxClients, Seconds: clientSeconds}
	from := Interface{Name: task.Ingress}
	udp := Proto{protocols["udp"]}
	t.Chains = append(t.Chains,
		Chain{
			Name: "arrive", Type: "filter", Hook: "prerouting", Priority: prioMangle,
			Rules: []Rule{
				{from, NewFlow{}, RememberSender{Map: t.Marks.Name}},
				{from, udp, Direction{}, Remembered{}, NoteClient{Map: t.Clients.Name, Seconds: clientSeconds}},
				{from, RestoreMark{}},
			},
		},
		Chain{
			Name: "answer", Type: "route", Hook: "output", Priority: prioRaw,
			Rules: []Rule{{udp, AnswerClient{Map: t.Clients.Name, Source: task.Address}}},
		},
		Chain{
			Name: "reply", Type: "route", Hook: "output", Priority: prioMangle,
			Rules: []Rule{{Direction{Reply: true}, Remembered{}, RestoreMark{}}},
		})
}

// The kernel's own connection tracking forgets a udp flow after two or three minutes
// without a datagram.
const (
	clientSeconds = 180
	maxClients    = 1 << 16
)

func marks(entries []Entry) Map {
	m := Map{Name: "entries", Type: "ether_addr : mark"}
	entries = slices.Clone(entries)
	slices.SortFunc(entries, func(a, b Entry) int { return slices.Compare(a.MAC[:], b.MAC[:]) })
	entries = slices.CompactFunc(entries, func(a, b Entry) bool { return a.MAC == b.MAC })
	for _, e := range entries {
		mac, mark := e.MAC, MarkOf(e.Addr)
		m.Elements = append(m.Elements, Element{
			Key: mac[:], Value: binary.NativeEndian.AppendUint32(nil, mark),
			Text: fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x : 0x%08x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], mark),
		})
	}
	return m
}

// BuildIngress returns the table of a host. Without ports it has no chains, and is
// not needed.
//
// The source of a connection stays: the task sees the client's address, and sends its
// reply back by this host, because its table remembers by which MAC the connection
// came. Only programs on the host that use 127.0.0.1 get this host's address on the
// ingress network.
func BuildIngress(i Ingress) Table {
	table := Table{Name: IngressTable, Balanced: Map{Name: "ports", Type: "inet_proto . inet_service : verdict"}}
	if i.Interface == "" {
		return table
	}
	seen := map[string]bool{}
	for _, p := range slices.Backward(i.Ports) {
		name := fmt.Sprintf("%s-%d", p.Proto, p.Port)
		to := sorted(p.Targets)
		proto := protocols[p.Proto]
		if proto == 0 || p.Port == 0 || len(to) == 0 || seen[name] {
			continue
		}
		seen[name] = true
		key := portKey(proto, p.Port)
		table.Targets = append(table.Targets, target(name,
			[]Rule{{Proto{proto}, Remember{Mark}, Spread{To: to}}},
			Element{Key: key, Text: fmt.Sprintf("%s . %d", p.Proto, p.Port)}, Flows{Proto: proto, Port: p.Port, To: to}))
	}
	if len(table.Targets) == 0 {
		return table
	}
	out := Interface{Out: true, Name: i.Interface}
	table.Chains = []Chain{
		// route_localnet is set on the interface, for replies to 127.0.0.1. No container
		// may use it to reach what listens there.
		{Name: "guard", Type: "filter", Hook: "prerouting", Priority: prioRaw, Rules: []Rule{
			{Interface{Name: i.Interface}, Loopback{}, Drop{}},
			{Interface{Name: i.Interface}, Loopback{Source: true}, Drop{}},
		}},
		// A translated packet is routed by the mark, because the subnet is in no other
		// routing table. Only the first packet of a connection passes the chains of type
		// nat, so the connection remembers the mark for the others.
		{Name: "mark", Type: "filter", Hook: "prerouting", Priority: prioMangle, Rules: []Rule{
			{Interface{Name: i.Interface}, SetMark{MarkBack}},
			{Interface{Not: true, Name: i.Interface}, Direction{}, Remembered{}, RestoreMark{}},
		}},
		{Name: "mark-output", Type: "route", Hook: "output", Priority: prioMangle, Rules: []Rule{
			{Direction{}, Remembered{}, RestoreMark{}},
		}},
		// The host forwards replies, and is no router for containers otherwise.
		{Name: "forward", Type: "filter", Hook: "forward", Priority: prioFilter, Rules: []Rule{
			{Interface{Name: i.Interface}, Direction{}, Drop{}},
		}},
		{Name: "prerouting", Type: "nat", Hook: "prerouting", Priority: prioDstNAT, Rules: []Rule{
			{Interface{Not: true, Name: i.Interface}, LocalDestination{}, Dispatch{Map: table.Balanced.Name, Port: true}},
		}},
		{Name: "output", Type: "nat", Hook: "output", Priority: prioDstNAT, Rules: []Rule{
			{LocalDestination{}, Dispatch{Map: table.Balanced.Name, Port: true}},
		}},
		{Name: "postrouting", Type: "nat", Hook: "postrouting", Priority: prioSrcNAT, Rules: []Rule{
			{out, Loopback{Source: true}, Source{i.Addr}},
		}},
	}
	return table.finish()
}

func target(name string, rules []Rule, key Element, flows Flows) Target {
	t := Target{Chain: Chain{Name: name, Rules: rules}, Key: key, Flows: flows}
	t.Chain.Name += "-" + fingerprint(t.Chain.String())
	return t
}

// finish sorts the targets, and adds the chain whose name is a fingerprint of
// all that is not in the name of a target.
func (t Table) finish() Table {
	slices.SortFunc(t.Targets, func(a, b Target) int { return cmp.Compare(a.Chain.Name, b.Chain.Name) })
	if len(t.Chains) == 0 {
		return t
	}
	layout := t
	layout.Targets = nil
	t.Chains = append(t.Chains, Chain{Name: "layout-" + fingerprint(layout.String())})
	return t
}

// Key returns the key of the target whose chain has that name, or nil if it is not
// a target's name.
func (t Table) Key(chain string) []byte {
	parts := strings.Split(chain, "-")
	if len(parts) != 3 {
		return nil
	}
	if a, err := netip.ParseAddr(parts[1]); err == nil && parts[0] == "vip" && a.Is4() {
		return a.AsSlice()
	}
	var port uint16
	if n, err := fmt.Sscanf(parts[1], "%d", &port); n == 1 && err == nil && protocols[parts[0]] != 0 {
		return portKey(protocols[parts[0]], port)
	}
	return nil
}

// IngressTargets returns the targets of a host's table, and one for each port without
// targets, to which nothing may lead.
func IngressTargets(i Ingress) []Target {
	table := BuildIngress(i)
	targets := slices.Clone(table.Targets)
	for _, p := range i.Ports {
		if proto := protocols[p.Proto]; proto != 0 && p.Port != 0 && len(p.Targets) == 0 {
			targets = append(targets, table.Removed(portKey(proto, p.Port)))
		}
	}
	return targets
}

// IngressPorts returns the ports that a host's table publishes, whose targets are not
// known, from the names of its chains.
func IngressPorts(chains []string) (ports []IngressPort) {
	for _, name := range chains {
		key := Table{}.Key(name)
		for proto, number := range protocols {
			if len(key) == 8 && key[0] == number {
				ports = append(ports, IngressPort{Proto: proto, Port: binary.BigEndian.Uint16(key[4:])})
			}
		}
	}
	slices.SortFunc(ports, func(a, b IngressPort) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), strings.Compare(a.Proto, b.Proto))
	})
	return ports
}

func portKey(proto byte, port uint16) []byte {
	return []byte{proto, 0, 0, 0, byte(port >> 8), byte(port), 0, 0}
}

// Removed returns a target with that key to which nothing may lead.
func (t Table) Removed(key []byte) Target {
	g := Target{Key: Element{Key: key}}
	if len(key) == 4 {
		g.Flows.Addr = netip.AddrFrom4([4]byte(key))
	} else if len(key) == 8 {
		g.Flows.Proto, g.Flows.Port = key[0], binary.BigEndian.Uint16(key[4:])
	}
	return g
}

// Needed reports whether the table does anything.
func (t Table) Needed() bool { return len(t.Chains) > 0 }

func sorted(to []netip.AddrPort) []netip.AddrPort {
	to = slices.Clone(to)
	slices.SortFunc(to, netip.AddrPort.Compare)
	return slices.Compact(to)
}

func fingerprint(s string) string {
	h := fnv.New64a()
	h.Write([]byte(s))
	return fmt.Sprintf("%016x", h.Sum64())
}
