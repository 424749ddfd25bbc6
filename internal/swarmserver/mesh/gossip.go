// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/moby/v2/daemon/libnetwork/networkdb"
	"github.com/moby/swarmkit/v2/api"
	"github.com/moby/swarmkit/v2/log"
)

// Address is where this node is in the swarm.
type Address struct {
	Listen    string // address at which the gossip listens
	Advertise string // address under which other nodes reach it
	DataPath  string // address of the tunnels; empty: Advertise
	// Remotes are the addresses of managers, without ports.
	Remotes []string
}

func (a Address) tunnel() string { return cmp.Or(a.DataPath, a.Advertise) }

// gossipPort is the port of the gossip, which Docker does not let choose either.
const gossipPort = 7946

// gossip tells other nodes of this node's endpoints and learns of theirs. It is used by
// one goroutine at a time.
//
// A process that was killed stays a member under its name until another member misses it,
// which takes seconds. The next process of the host has another name at the same address.
// networkdb takes the name that it hears of last for the later process, and the other one for
// one that has left: it drops the records of that one, and never takes it back, even if it is
// the process that lives. This happens to other members, and to the process itself. Such a
// database is renewed; see ill.
type gossip struct {
	db      *networkdb.NetworkDB
	name    string // of this process
	address Address
	started time.Time
	keys    []*api.EncryptionKey
	joined  map[string]bool              // networks
	own     map[string]map[string][]byte // records of this node by network, then by table and key
	joining time.Time                    // of the last attempt to join
	busy    atomic.Bool                  // an attempt is under way
	greeted atomic.Bool                  // another node has been met, or there is none to meet
	stop    func()

	mu sync.Mutex
	// ignored counts, by address, the attempts to meet a node that has been among the peers:
	// those that the node has answered, and that have not made it a peer again.
	ignored map[string]int
}

// gossipKeys returns the keys of the gossip with the primary one first: of three it is
// the middle one, because the newest has not reached all nodes.
func gossipKeys(all []*api.EncryptionKey) (keys []*api.EncryptionKey) {
	for _, k := range all {
		if k.Subsystem == "networking:gossip" {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b *api.EncryptionKey) int { return cmp.Compare(a.LamportTime, b.LamportTime) })
	if len(keys) > 1 {
		keys[0], keys[1] = keys[1], keys[0]
	}
	return keys
}

// startGossip begins to listen. changed is called after each change of a record.
func startGossip(a Address, all []*api.EncryptionKey, changed func()) (*gossip, error) {
	keys := gossipKeys(all)
	if len(keys) == 0 {
		return nil, errors.New("the managers have not sent the keys of the gossip yet")
	}
	c := networkdb.DefaultConfig()
	c.BindAddr, c.AdvertiseAddr, c.BindPort = a.Listen, a.Advertise, gossipPort
	for _, k := range keys {
		c.Keys = append(c.Keys, k.Key)
	}
	db, err := networkdb.New(c)
	if err != nil {
		return nil, fmt.Errorf("gossip with other nodes at %s: %w", net.JoinHostPort(a.Listen, fmt.Sprint(gossipPort)), err)
	}
	events, cancel := db.Watch("", "")
	g := &gossip{
		db: db, name: c.NodeID, address: a, started: time.Now(), keys: keys, joined: map[string]bool{}, own: map[string]map[string][]byte{}, stop: cancel,
		ignored: map[string]int{},
	}
	go func() {
		for {
			select {
			case <-events.C:
				changed()
			case <-events.Done():
				return
			}
		}
	}()
	return g, nil
}

// met returns the addresses of the other nodes that take part in the gossip. The name of an
// earlier process of this node may still be among the peers: it is no other node.
func (g *gossip) met() map[string]bool {
	all := map[string]bool{}
	for _, p := range g.db.ClusterPeers() {
		if at := p.IP.String(); at != g.address.Advertise {
			all[at] = true
		}
	}
	return all
}

// missing returns those of the addresses where no node is known, and those at which one was.
func (g *gossip) missing(known []string) []string {
	met := g.met()
	g.mu.Lock()
	defer g.mu.Unlock()
	for at := range met {
		g.ignored[at] = 0
	}
	all := slices.Concat(known, slices.Collect(maps.Keys(g.ignored)))
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), func(at string) bool { return met[at] })
}

// join meets other nodes at the addresses where none is known. It does not wait, because a
// host that is dead does not answer. changed is called when it has met some.
func (g *gossip) join(known []string, changed func()) {
	missing := g.missing(known)
	if len(missing) == 0 {
		g.greeted.Store(true)
	}
	if len(missing) == 0 || time.Since(g.joining) < joinEach || !g.busy.CompareAndSwap(false, true) {
		return
	}
	g.joining = time.Now()
	go func() {
		defer g.busy.Store(false)
		var all sync.WaitGroup
		turns := make(chan struct{}, joinAtOnce) // a dead host takes ten seconds
		for _, at := range missing {
			turns <- struct{}{}
			all.Go(func() {
				defer func() { <-turns }()
				err := g.db.Join([]string{at})
				g.tried(at, err == nil)
				if err != nil {
					log.L.Debugf("join the gossip of %s: %v", at, err)
					return
				}
				g.greeted.Store(true)
				changed()
			})
		}
		all.Wait()
	}()
}

// joinAtOnce is how many nodes are asked at once.
const joinAtOnce = 8

// tried notes an attempt to meet a node.
func (g *gossip) tried(at string, answered bool) {
	met := g.met()
	g.mu.Lock()
	defer g.mu.Unlock()
	switch count, was := g.ignored[at]; {
	case !answered:
		delete(g.ignored, at) // it has left, or is met when it is heard of again
	case was && !met[at]:
		g.ignored[at] = count + 1
	}
}

// enough is how many attempts to meet a node show that it is taken for one that has left. A
// node that was away needs two, because it has to contradict those who missed it.
const enough = 5

// ill returns why the database has to be renewed, or "".
func (g *gossip) ill() string {
	self := false
	for _, p := range g.db.ClusterPeers() {
		// As long as an earlier process is among the peers, a new database would lose this
		// process again.
		self = self || p.Name == g.name || p.IP.String() == g.address.Advertise
	}
	if !self {
		return "this process is taken for one that has left"
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for at, count := range g.ignored {
		if count >= enough {
			return "the node at " + at + " answers, and is taken for one that has left"
		}
	}
	return ""
}

// synchronised reports whether the records of other nodes are complete. Without another
// manager to meet there may be no other node.
func (g *gossip) synchronised(managers []string) bool {
	return time.Since(g.started) > settleGossip && (len(managers) == 0 || len(g.met()) > 0)
}

// setKeys follows a rotation of the keys.
func (g *gossip) setKeys(all []*api.EncryptionKey) {
	keys := gossipKeys(all)
	if len(keys) == 0 {
		return
	}
	has := func(list []*api.EncryptionKey, k *api.EncryptionKey) bool {
		return slices.ContainsFunc(list, func(o *api.EncryptionKey) bool { return bytes.Equal(o.Key, k.Key) })
	}
	for _, k := range keys {
		if !has(g.keys, k) {
			g.db.SetKey(k.Key)
		}
	}
	g.db.SetPrimaryKey(keys[0].Key)
	for _, k := range g.keys {
		if !has(keys, k) {
			g.db.RemoveKey(k.Key)
		}
	}
	g.keys = keys
}

// early reports whether it is too early to subscribe to networks. A node that subscribes gets all
// records from those whom it knows then. What it misses, and what it tells before others know it,
// is only exchanged by random pairs of nodes, twice a minute.
func (g *gossip) early() bool {
	return !g.greeted.Load() && time.Since(g.started) < settleGossip
}

// listen subscribes to the records of a network. It reports whether that is done.
func (g *gossip) listen(network string) bool {
	if !g.joined[network] {
		if g.early() {
			return false
		}
		g.joined[network], g.own[network] = true, map[string][]byte{}
		// A node that does not answer is waited for, for half a minute.
		go func() {
			if err := g.db.JoinNetwork(network); err != nil {
				log.L.Errorf("gossip of network %s: %v", network, err)
			}
		}()
	}
	for _, p := range g.db.Peers(network) {
		if p.Name == g.name {
			return true
		}
	}
	return false
}

// publish makes the records of this node on a network those that are given, by table
// and key. It reports whether that is done, or has to be tried again soon.
func (g *gossip) publish(network string, records map[string][]byte) (done bool, err error) {
	if len(records) == 0 && !g.joined[network] {
		return true, nil
	}
	if !g.listen(network) {
		return false, nil
	}
	own := g.own[network]
	var failed []error
	note := func(err error) {
		if err != nil {
			failed = append(failed, err)
		}
	}
	// What the database has decides, because it may have lost records of this node.
	for at, value := range records {
		table, key := splitKey(at)
		now, err := g.db.GetEntry(table, network, key)
		switch {
		case err != nil:
			note(g.db.CreateEntry(table, network, key, value))
		case !bytes.Equal(now, value):
			note(g.db.UpdateEntry(table, network, key, value))
		}
		own[at] = value
	}
	for at, value := range own {
		if _, wanted := records[at]; wanted {
			continue
		}
		table, key := splitKey(at)
		if _, err := g.db.GetEntry(table, network, key); err != nil {
			note(g.db.CreateEntry(table, network, key, value)) // other nodes may have it
		}
		note(g.db.DeleteEntry(table, network, key))
		delete(own, at)
	}
	return true, errors.Join(failed...)
}

// leave takes this node from the gossip of a network.
func (g *gossip) leave(network string) {
	if !g.joined[network] {
		return
	}
	if err := g.db.LeaveNetwork(network); err != nil {
		log.L.Warnf("leave the gossip of network %s: %v", network, err)
	}
	delete(g.joined, network)
	delete(g.own, network)
}

// remote returns the records of other nodes on a network, by key.
func (g *gossip) remote(network string) map[string]member {
	all := map[string]member{}
	for _, table := range []string{peerTable, endpointTable} {
		for key, e := range g.db.GetTableByNetwork(table, network) {
			if _, own := g.own[network][joinKey(table, key)]; own {
				continue
			}
			m := all[key]
			var err error
			if table == peerTable {
				m.Peer, err = decodePeer(e.Value)
			} else {
				m.Endpoint, err = decodeEndpoint(e.Value)
			}
			if err != nil {
				log.L.Warnf("network %s: %v", network, err)
				continue
			}
			all[key] = m
		}
	}
	return all
}

// close leaves the gossip.
func (g *gossip) close() {
	g.stop()
	g.db.Close()
}

func joinKey(table, key string) string { return table + "/" + key }

func splitKey(at string) (table, key string) {
	for i := range at {
		if at[i] == '/' {
			return at[:i], at[i+1:]
		}
	}
	return at, ""
}
