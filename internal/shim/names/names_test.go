package names

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// put writes a file as the daemon does: renamed into place.
func put(t *testing.T, path string, v any) {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".tmp", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

// serve starts a server on loopback sockets, and gives a resolver that asks it.
func serve(t *testing.T, v View) (*net.Resolver, string) {
	t.Helper()
	view := filepath.Join(t.TempDir(), "names.json")
	put(t, view, v)
	tcp, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: tcp.Addr().(*net.TCPAddr).Port})
	if err != nil {
		t.Fatal(err)
	}
	uf, err := udp.File()
	if err != nil {
		t.Fatal(err)
	}
	tf, err := tcp.File()
	if err != nil {
		t.Fatal(err)
	}
	address := tcp.Addr().String()
	udp.Close()
	tcp.Close()
	s := New(view, uf, tf)
	done := make(chan struct{})
	go func() { s.Serve(); close(done) }()
	t.Cleanup(func() { s.Close(); <-done })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}}, view
}

func twoNetworks(t *testing.T) View {
	dir := t.TempDir()
	front, back := filepath.Join(dir, "front.json"), filepath.Join(dir, "back.json")
	put(t, front, Network{Schema: Schema, Name: "front", Subnets: []string{"10.1.0.0/24"}, Members: []Member{
		{Name: "web", Names: []string{"0123456789ab", "www"}, Addresses: []string{"10.1.0.2", "fd00::2"}},
		{Name: "web2", Names: []string{"www"}, Addresses: []string{"10.1.0.3"}},
		{Name: "stopped"},
	}})
	put(t, back, Network{Schema: Schema, Name: "back", Subnets: []string{"10.2.0.0/24"}, Members: []Member{
		{Name: "db", Addresses: []string{"10.2.0.2"}},
	}})
	return View{Schema: Schema, Networks: []string{front, back}, Links: map[string]string{"database": "db"}}
}

func TestNamesOfTheContainersNetworksResolve(t *testing.T) {
	r, _ := serve(t, twoNetworks(t))
	for _, c := range []struct{ name, want string }{
		{"web", "10.1.0.2 fd00::2"},
		{"WEB", "10.1.0.2 fd00::2"},
		{"web.front", "10.1.0.2 fd00::2"},
		{"0123456789ab", "10.1.0.2 fd00::2"},
		{"www", "10.1.0.2 10.1.0.3 fd00::2"},
		{"db", "10.2.0.2"},
		{"database", "10.2.0.2"},
	} {
		got, err := r.LookupHost(t.Context(), c.name+".")
		slices.Sort(got)
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%s: %v, %v; want %s", c.name, got, err, c.want)
		}
	}
}

func TestUnknownNamesOfOurOwnDoNotExistAndAreAskedOfNobody(t *testing.T) {
	asked := make(chan string, 8)
	v := twoNetworks(t)
	v.Upstream = []string{upstream(t, func(q dnsmessage.Question) { asked <- q.Name.String() })}
	r, _ := serve(t, v)
	for _, name := range []string{"stopped.", "nobody.front.", "db.front."} {
		if got, err := r.LookupHost(t.Context(), name); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
	if got, err := r.LookupAddr(t.Context(), "10.1.0.99"); err == nil {
		t.Errorf("10.1.0.99: %v", got)
	}
	select {
	case name := <-asked:
		t.Errorf("the host's server was asked for %s", name)
	default:
	}
}

func TestAddressesAreFoundBackwards(t *testing.T) {
	r, _ := serve(t, twoNetworks(t))
	for addr, want := range map[string]string{"10.1.0.2": "web.front.", "10.2.0.2": "db.back.", "fd00::2": "web.front."} {
		got, err := r.LookupAddr(t.Context(), addr)
		if err != nil || len(got) != 1 || got[0] != want {
			t.Errorf("%s: %v, %v", addr, got, err)
		}
	}
}

func TestAnswersTakeTurns(t *testing.T) {
	v := twoNetworks(t)
	tab := table{path: filepath.Join(t.TempDir(), "v")}
	put(t, tab.path, v)
	first := map[netip.Addr]bool{}
	for range 4 {
		addrs, _ := tab.lookup("www", false)
		first[addrs[0]] = true
	}
	if len(first) != 2 {
		t.Errorf("the first address was always one of %v", first)
	}
}

func TestChangedFilesAreSeenAtTheNextQuestion(t *testing.T) {
	v := twoNetworks(t)
	r, view := serve(t, v)
	if _, err := r.LookupHost(t.Context(), "db."); err != nil {
		t.Fatal(err)
	}
	v.Networks = v.Networks[:1]
	put(t, view, v)
	if got, err := r.LookupHost(t.Context(), "db."); err == nil {
		t.Errorf("a name of a network that the container has left: %v", got)
	}
}

func TestManyAddressesComeOverTCP(t *testing.T) {
	dir := t.TempDir()
	n := Network{Schema: Schema, Name: "big", Subnets: []string{"10.9.0.0/16"}}
	for i := range 200 {
		n.Members = append(n.Members, Member{Name: fmt.Sprintf("c%d", i), Names: []string{"all"}, Addresses: []string{fmt.Sprintf("10.9.1.%d", i)}})
	}
	put(t, filepath.Join(dir, "big.json"), n)
	r, _ := serve(t, View{Schema: Schema, Networks: []string{filepath.Join(dir, "big.json")}})
	got, err := r.LookupHost(t.Context(), "all.")
	if err != nil || len(got) != 200 {
		t.Errorf("%d addresses, %v", len(got), err)
	}
}

// upstream is a server of the host that knows example.test alone.
func upstream(t *testing.T, seen func(dnsmessage.Question)) string {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := c.ReadFromUDP(buf)
			if err != nil {
				return
			}
			q, ok := parse(buf[:n])
			if !ok {
				continue
			}
			seen(q.question)
			answer := q.missing()
			if q.question.Name.String() == "example.test." && q.question.Type == dnsmessage.TypeA {
				answer = q.answer(dnsmessage.RCodeSuccess, func(b *dnsmessage.Builder, h dnsmessage.ResourceHeader) error {
					return b.AResource(h, dnsmessage.AResource{A: [4]byte{192, 0, 2, 7}})
				})
			}
			c.WriteToUDP(answer, from)
		}
	}()
	return c.LocalAddr().String()
}

func TestOtherNamesAreAskedOfTheNextServerWhenOneIsDead(t *testing.T) {
	// A port that nobody listens on answers with an ICMP error at once.
	dead, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	gone := dead.LocalAddr().String()
	dead.Close()
	v := twoNetworks(t)
	v.Upstream = []string{gone, upstream(t, func(dnsmessage.Question) {})}
	r, _ := serve(t, v)
	got, err := r.LookupHost(t.Context(), "example.test.")
	if err != nil || len(got) != 1 || got[0] != "192.0.2.7" {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestReversedNames(t *testing.T) {
	for name, want := range map[string]string{
		"4.3.2.1.in-addr.arpa": "1.2.3.4",
		"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa": "fd00::2",
		"1.in-addr.arpa": "", "x.ip6.arpa": "", "example.com": "",
	} {
		a, ok := reversed(name)
		if ok != (want != "") || ok && a.String() != want {
			t.Errorf("%s: %v, %v", name, a, ok)
		}
	}
}

func FuzzQuestion(f *testing.F) {
	q := query{header: dnsmessage.Header{ID: 7}, question: dnsmessage.Question{
		Name: dnsmessage.MustNewName("web."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
	}}
	f.Add(q.answer(dnsmessage.RCodeSuccess, nil))
	tab := table{path: "/nowhere"}
	f.Fuzz(func(t *testing.T, b []byte) {
		if q, ok := parse(b); ok {
			tab.local(q)
			q.fit(q.failure())
		}
	})
}
