// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"net/netip"
	"testing"
	"time"

	"holdfast/internal/network/firewall"
	"holdfast/internal/network/nft"
)

// The kernel sends a long list in parts. If another transaction is committed
// between two parts, it omits elements and marks the list, and the nftables library
// ignores the mark.
func TestPortsAreListedWholeWhileOthersChange(t *testing.T) {
	const table = "holdfast-listing"
	t.Cleanup(func() { removeTable(t, table) })
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	port := func(i int, owner string) nft.Element {
		return nft.Element{
			Proto: "tcp", Host: netip.IPv4Unspecified(), HostPort: uint16(i), Owner: owner,
			Target: netip.AddrPortFrom(netip.MustParseAddr("172.17.0.2"), uint16(i)),
		}
	}
	var stay, change []nft.Element
	for i := range 4000 {
		stay = append(stay, port(10000+i, "stays"))
		if i%8 == 0 {
			change = append(change, port(20000+i, "changes"))
		}
	}
	lister, err := firewall.Open(table)
	ok(err)
	defer lister.Close()
	_, err = lister.Sync(nft.Build(nft.Config{Table: table, IPv4: true}))
	ok(err)
	ok(lister.Add(stay))

	other, err := firewall.Open(table)
	ok(err)
	done, stopped := make(chan struct{}), make(chan error)
	go func() {
		var err error
		pause := time.NewTicker(100 * time.Millisecond)
		defer pause.Stop()
		for err == nil {
			select {
			case <-done:
				stopped <- nil
				return
			case <-pause.C:
			}
			if err = other.Add(change); err == nil {
				err = other.Delete(change)
			}
		}
		stopped <- err
	}()
	for range 30 {
		all, err := lister.Elements()
		ok(err)
		n := 0
		for _, e := range all {
			if e.Owner == "stays" {
				n++
			}
		}
		if n != len(stay) {
			t.Errorf("%d of the %d ports that stay are listed", n, len(stay))
			break
		}
	}
	close(done)
	ok(<-stopped)
	ok(other.Close())
}
