// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"holdfast/internal/network/overlay"
)

// at is a member with an address.
func at(ip string, e endpointRecord) member {
	if e.Name != "" {
		e.EndpointIP = ip
	}
	return member{Endpoint: e, Peer: peerRecord{EndpointIP: ip + "/24", EndpointMAC: "02:42:0a:00:01:05", TunnelEndpointIP: "192.0.2.2"}}
}

var sampleMembers = []member{
	at("10.0.1.3", endpointRecord{Name: "web.1.a", Service: "web", VirtualIP: "10.0.1.2", Aliases: []string{"site"}, TaskAliases: []string{"c1"}, Ports: []portRecord{{Target: 80, Published: 8080}}}),
	at("10.0.1.4", endpointRecord{Name: "web.2.b", Service: "web", VirtualIP: "10.0.1.2", Aliases: []string{"site"}, Ports: []portRecord{{Target: 80, Published: 8080}}}),
	at("10.0.1.5", endpointRecord{Name: "web.3.c", Service: "web", VirtualIP: "10.0.1.2", Disabled: true, Ports: []portRecord{{Target: 80, Published: 8080}}}),
	at("10.0.1.6", endpointRecord{Name: "rr.1.d", Service: "rr"}),
	at("10.0.1.8", endpointRecord{Name: "gone.1.e", Service: "gone", VirtualIP: "10.0.1.7", Disabled: true}),
	at("10.0.1.9", endpointRecord{}), // not healthy yet, or a node
}

func TestNamesAndServicesFollowFromTheRecords(t *testing.T) {
	d := overlay.Definition{Name: "over"}
	d.Subnets = []overlay.Subnet{{Prefix: netip.MustParsePrefix("10.0.1.0/24")}}
	got, err := json.Marshal(namesOf(d, sampleMembers).Members)
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"name":"gone","addresses":["10.0.1.7"]},{"name":"rr","addresses":["10.0.1.6"]},{"name":"tasks.gone"},{"name":"tasks.rr","addresses":["10.0.1.6"]},` +
		`{"name":"tasks.web","names":["tasks.site"],"addresses":["10.0.1.3","10.0.1.4"]},{"name":"web","names":["site"],"addresses":["10.0.1.2"]},` +
		`{"name":"rr.1.d","addresses":["10.0.1.6"]},{"name":"web.1.a","names":["c1"],"addresses":["10.0.1.3"]},{"name":"web.2.b","addresses":["10.0.1.4"]}]`
	if string(got) != want {
		t.Errorf("names\n%s, want\n%s", got, want)
	}
	if got, want := fmt.Sprint(servicesOf(sampleMembers, serve)), "[{10.0.1.2 [10.0.1.3 10.0.1.4]} {10.0.1.7 []}]"; got != want {
		t.Errorf("services %s, want %s", got, want)
	}
	if got, want := fmt.Sprint(portsOf(sampleMembers, serve)), "[{tcp 8080 [10.0.1.3:80 10.0.1.4:80]}]"; got != want {
		t.Errorf("ports %s, want %s", got, want)
	}
	// A task that is about to end keeps the connections that it has.
	kept := servicesOf(sampleMembers, keep)
	if got, want := fmt.Sprint(kept), "[{10.0.1.2 [10.0.1.3 10.0.1.4 10.0.1.5]} {10.0.1.7 [10.0.1.8]}]"; got != want {
		t.Errorf("services whose connections go on %s, want %s", got, want)
	}
	if got, want := fmt.Sprint(withRemoved(kept[1:], kept)), "[{10.0.1.7 [10.0.1.8]} {10.0.1.2 []}]"; got != want {
		t.Errorf("after the removal of a service %s, want %s", got, want)
	}
	ports := portsOf(sampleMembers, keep)
	if got, want := fmt.Sprint(ports, withRemovedPorts(nil, ports)), "[{tcp 8080 [10.0.1.3:80 10.0.1.4:80 10.0.1.5:80]}] [{tcp 8080 []}]"; got != want {
		t.Errorf("ports whose connections go on %s, want %s", got, want)
	}
	if got := entriesOf(sampleMembers, netip.MustParseAddr("10.0.1.3")); len(got) != 1 || got[0].Addr.String() != "10.0.1.9" {
		t.Errorf("entries %v", got)
	}
	if got := entriesOf(sampleMembers, netip.MustParseAddr("10.0.1.9")); len(got) != 0 {
		t.Errorf("a task is an entry to itself: %v", got)
	}
	d.Ingress = true
	if n := namesOf(d, sampleMembers); len(n.Members) != 0 {
		t.Errorf("names on the network of the routing mesh: %v", n.Members)
	}
}

func TestEndpointsThatVanishWithoutAWordAreUsedForSomeTime(t *testing.T) {
	m := &Mesh{seen: map[string]map[string]*sighting{}}
	serving, ending := sampleMembers[0], sampleMembers[2]
	names := func(want string) {
		t.Helper()
		got := ""
		for _, mb := range m.remembered("n", nil, "") {
			got += mb.Endpoint.Name + " "
		}
		if got != want {
			t.Errorf("known are %q, want %q", got, want)
		}
	}
	m.look(snapshot{}, "n", map[string]member{"a": serving, "c": ending}, true)
	names("web.1.a web.3.c ")
	m.look(snapshot{}, "n", nil, true)
	names("web.1.a ") // the other one has said that it ends
	m.seen["n"]["a"].last = time.Now().Add(-linger - time.Second)
	m.look(snapshot{}, "n", nil, false)
	names("web.1.a ") // the gossip is not complete
	m.seen["n"]["a"].last = time.Now().Add(-linger - time.Second)
	m.look(snapshot{}, "n", nil, true)
	names("")

	// A new incarnation of the same endpoint takes the place of the old one.
	m.look(snapshot{}, "n", map[string]member{"old": serving}, true)
	renamed := serving
	renamed.Endpoint.Name = "new"
	m.look(snapshot{}, "n", map[string]member{"new": renamed}, true)
	names("new ")
	if got := m.remembered("n", map[string]bool{"10.0.1.3": true}, ""); len(got) != 0 {
		t.Errorf("an address of this host is taken for another's: %v", got)
	}
	if got := m.remembered("n", nil, "192.0.2.2"); len(got) != 0 {
		t.Errorf("a task of this host that has ended is taken for one that runs: %v", got)
	}
	if got := peersOf(sampleMembers, nil, "192.0.2.2"); len(got) != 0 {
		t.Errorf("this host is its own peer: %v", got)
	}
}
