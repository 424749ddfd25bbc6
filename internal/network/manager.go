// Package network is the engine's networks, and the containers' places in
// them: addresses, network namespaces, published ports. It owns the records
// under networks/, the bridges, veths and namespaces of package bridge and the
// nftables table of package firewall. What is in use follows from the
// containers' Sandboxes, which the engine stores and gives at Restore; nothing
// is counted here. It knows no container beyond its ID.
//
// A life of a container goes: Prepare (in memory, and sockets that keep the
// host ports), then the engine stores the Sandbox, then Join and Publish, and
// at the end Release. The Sandbox holds all that the kernel has been given, so
// each of them can be repeated, or undone, after a crash at any point.
package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"

	"holdfast/internal/network/firewall"
	"holdfast/internal/network/ipam"
)

// Manager holds the networks of one engine. Its methods may be called
// concurrently, those for one container not.
type Manager struct {
	opts parsed

	// rules is held for reading while elements are added or deleted, and for
	// writing while the whole table is compared, so that a comparison never
	// takes away what was just added. It is taken before mu.
	rules sync.RWMutex
	table *firewall.Table // nil without packet filter, or before Restore

	// others is held while other programs' packet filters are compared. It is
	// taken before rules.
	others sync.Mutex
	// refusing is what was last told of those that can't be changed. others
	// guards it.
	refusing []string
	zones    firewall.Firewalld // needs no lock

	// changing is held for reading by what changes both what should be and what
	// is, and for writing while the two are compared to find what others have
	// done. It is taken before all others.
	changing sync.RWMutex

	// links is held while bridges are made again or removed. It is taken before
	// mu.
	links sync.Mutex
	watch *watch // nil before Restore, and after Close

	// condemned are networks whose removal a daemon did not finish; Restore does.
	condemned []*record

	mu        sync.Mutex // guards all below
	networks  map[string]*object
	sandboxes map[string]Sandbox // by container
	published map[string]bool    // containers whose elements shall be there
	ports     *portRegistry
	troubles  map[string][]string // by container: what it lost
	held      map[string]*os.File // namespaces, by container; see hold
	leaving   bool                // other programs' filters shall have nothing of ours
}

// object is a network with what is in use of it.
type object struct {
	*record
	allocators []*ipam.Allocator // one for each of the record's subnets
}

// Open reads the records. Nothing is changed, neither on disk nor in the
// kernel, before Restore.
func Open(_ context.Context, o Options) (*Manager, error) {
	p, err := o.parse()
	if err != nil {
		return nil, err
	}
	records, condemned, err := load(p.Root)
	if err != nil {
		return nil, err
	}
	first, last := ephemeralRange()
	m := &Manager{
		opts:      p,
		networks:  map[string]*object{},
		sandboxes: map[string]Sandbox{},
		published: map[string]bool{},
		ports:     newPortRegistry(first, last),
		troubles:  map[string][]string{},
		held:      map[string]*os.File{},
		condemned: condemned,
	}
	// Anywhere in the range: daemons beside each other don't ask for the same
	// ports, and what was free just before a daemon's end isn't another's at once.
	m.ports.cursor = first + uint16(mathrand.IntN(int(last-first)+1))
	for name, r := range records {
		m.networks[name] = &object{record: r}
	}
	return m, nil
}

// Close gives up the connections to the kernel. Everything in it stays.
func (m *Manager) Close() error {
	if w := m.watch; w != nil {
		m.watch = nil
		if err := w.stop(); err != nil {
			m.opts.Log.Debug("the watch of the kernel did not end well", "error", err)
		}
	}
	if err := m.zones.Close(); err != nil {
		m.opts.Log.Debug("the connection to the system bus did not end well", "error", err)
	}
	m.mu.Lock()
	for _, f := range m.held {
		f.Close()
	}
	clear(m.held)
	m.mu.Unlock()
	m.others.Lock()
	defer m.others.Unlock()
	m.rules.Lock()
	defer m.rules.Unlock()
	if m.table == nil {
		return nil
	}
	t := m.table
	m.table = nil
	return t.Close()
}

// filtering reports whether there is a packet filter.
func (p parsed) filtering() bool { return p.Iptables || p.Ip6tables }

func randomID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// macOf is the hardware address that goes with an address: locally
// administered, and the same whenever the address is given out again, so that
// neighbours' tables stay right.
func macOf(addr netip.Addr) net.HardwareAddr {
	mac := net.HardwareAddr{0x02, 0x42}
	if addr.Is4() {
		b := addr.As4()
		return append(mac, b[:]...)
	}
	b := addr.As16()
	return append(mac, b[12:]...)
}

// randomMAC is a locally administered hardware address that goes with nothing.
func randomMAC() net.HardwareAddr {
	var b [4]byte
	rand.Read(b[:])
	return append(net.HardwareAddr{0x02, 0x43}, b[:]...)
}

func parseMAC(s string) (net.HardwareAddr, error) {
	if s == "" {
		return nil, nil
	}
	mac, err := net.ParseMAC(s)
	if err != nil {
		return nil, fmt.Errorf("hardware address %q: %w", s, err)
	}
	return mac, nil
}
