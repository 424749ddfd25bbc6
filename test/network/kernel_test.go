// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"encoding/binary"
	"testing"

	"holdfast/internal/network/dump"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

func removeTable(t *testing.T, name string) {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
	conn.AddTable(table)
	conn.DelTable(table)
	if err := conn.Flush(); err != nil {
		t.Error(err)
	}
}

// flushChain removes a chain's rules, to prove that a test depends on them.
func flushChain(t *testing.T, table, chain string) {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tb := &nftables.Table{Name: table, Family: nftables.TableFamilyINet}
	conn.FlushChain(&nftables.Chain{Name: chain, Table: tb})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
}

// owners counts the elements of all maps by the container that they belong to.
func owners(t *testing.T, table string) map[string]int {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	var rules dump.Nftables
	defer rules.Close()
	sets, err := dump.Ruleset(&rules, func() ([]*nftables.Set, error) {
		return conn.GetSets(&nftables.Table{Name: table, Family: nftables.TableFamilyINet})
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sets {
		elements, err := dump.Ruleset(&rules, func() ([]nftables.SetElement, error) { return conn.GetSetElements(s) })
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range elements {
			out[e.Comment]++
		}
	}
	return out
}

// generation is the number of nftables transactions so far.
func generation(t *testing.T) uint32 {
	t.Helper()
	const getGen, genID = 16, 1
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ms, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | getGen, Flags: netlink.Request},
		Data:   make([]byte, 4),
	})
	if err != nil {
		t.Fatal(err)
	}
	ad, err := netlink.NewAttributeDecoder(ms[0].Data[4:])
	if err != nil {
		t.Fatal(err)
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		if ad.Type() == genID {
			return ad.Uint32()
		}
	}
	t.Fatal("the kernel's answer has no generation")
	return 0
}
