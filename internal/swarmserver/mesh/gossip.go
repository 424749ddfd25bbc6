// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
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
type gossip struct {
	db      *networkdb.NetworkDB
	address Address
	started time.Time
	keys    []*api.EncryptionKey
	joined  map[string]bool              // networks
	own     map[string]map[string][]byte // records of this node by network, then by table and key
	joining time.Time                    // of the last attempt to join
	busy    atomic.Bool                  // an attempt is under way
	stop    func()
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
		db: db, address: a, started: time.Now(), keys: keys, joined: map[string]bool{}, own: map[string]map[string][]byte{}, stop: cancel,
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

// missing returns those of the addresses where no node is known.
func (g *gossip) missing(known []string) []string {
	met := g.met()
	return slices.DeleteFunc(slices.Clone(known), func(at string) bool { return met[at] })
}

// join meets other nodes at the addresses where none is known. It does not wait, because a
// host that is dead does not answer. changed is called when it has met some.
func (g *gossip) join(known []string, changed func()) {
	missing := g.missing(known)
	if len(missing) == 0 || time.Since(g.joining) < joinEach || !g.busy.CompareAndSwap(false, true) {
		return
	}
	g.joining = time.Now()
	go func() {
		defer g.busy.Store(false)
		if err := g.db.Join(missing); err != nil {
			log.L.Debugf("join the gossip of %v: %v", missing, err)
			return
		}
		changed()
	}()
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

// listen subscribes to the records of a network.
func (g *gossip) listen(network string) error {
	if g.joined[network] {
		return nil
	}
	if err := g.db.JoinNetwork(network); err != nil {
		return fmt.Errorf("gossip of network %s: %w", network, err)
	}
	g.joined[network], g.own[network] = true, map[string][]byte{}
	return nil
}

// publish makes the records of this node on a network those that are given, by table
// and key.
func (g *gossip) publish(network string, records map[string][]byte) error {
	if len(records) == 0 && !g.joined[network] {
		return nil
	}
	if err := g.listen(network); err != nil {
		return err
	}
	own := g.own[network]
	var failed []error
	note := func(err error) bool {
		if err != nil {
			failed = append(failed, err)
		}
		return err == nil
	}
	for at, value := range records {
		before, there := own[at]
		table, key := splitKey(at)
		switch {
		case there && bytes.Equal(before, value):
		case there:
			if note(g.db.UpdateEntry(table, network, key, value)) {
				own[at] = value
			}
		default:
			if note(g.db.CreateEntry(table, network, key, value)) {
				own[at] = value
			}
		}
	}
	for at := range own {
		if _, wanted := records[at]; !wanted {
			table, key := splitKey(at)
			note(g.db.DeleteEntry(table, network, key))
			delete(own, at)
		}
	}
	return errors.Join(failed...)
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
