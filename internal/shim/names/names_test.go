// SPDX-License-Identifier: Apache-2.0

package names

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// put writes a file as the daemon does: by renaming it into place.
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

// sockets returns sockets with the same port number. The kernel chooses it for TCP;
// if the UDP port is taken, another one is tried.
func sockets(t *testing.T) (tcp *net.TCPListener, udp *net.UDPConn) {
	t.Helper()
	var err error
	for range 100 {
		if tcp, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
			t.Fatal(err)
		}
		if udp, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: tcp.Addr().(*net.TCPAddr).Port}); err == nil {
			return tcp, udp
		}
		tcp.Close()
	}
	t.Fatal(err)
	return nil, nil
}

// serve starts a server on loopback sockets and returns a resolver that uses it.
func serve(t *testing.T, v View) (*net.Resolver, string) {
	t.Helper()
	view := filepath.Join(t.TempDir(), "names.json")
	put(t, view, v)
	tcp, udp := sockets(t)
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
	other := filepath.Join(t.TempDir(), "other.json")
	put(t, other, Network{Schema: Schema, Name: "back_1"})
	v.Networks = append(v.Networks, other)
	r, _ := serve(t, v)
	for _, name := range []string{"stopped.", "stopped.front.", "db.front.", "nobody.back_1.", "nobody.front.back_1."} {
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

// A network with the name of a public domain must not hide that domain.
func TestNetworkThatIsCalledAsADomainDoesNotHideIt(t *testing.T) {
	v := twoNetworks(t)
	named := filepath.Join(t.TempDir(), "test.json")
	put(t, named, Network{Schema: Schema, Name: "test", Members: []Member{{Name: "web", Addresses: []string{"10.3.0.2"}}}})
	v.Networks = append(v.Networks, named)
	v.Upstream = []string{upstream(t, func(dnsmessage.Question) {})}
	r, _ := serve(t, v)
	for name, want := range map[string]string{"example.test.": "192.0.2.7", "web.test.": "10.3.0.2"} {
		if got, err := r.LookupHost(t.Context(), name); err != nil || len(got) != 1 || got[0] != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// exchange sends a message to a resolver's server and returns the answer.
func exchange(t *testing.T, r *net.Resolver, network string, msg []byte) []byte {
	t.Helper()
	c, err := r.Dial(t.Context(), network, "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if network == "tcp" {
		if err := writeMessage(c, msg); err != nil {
			t.Fatal(err)
		}
		got, err := readMessage(c)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if _, err := c.Write(msg); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, maxMessage)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

func question(t testing.TB, name string, kind dnsmessage.Type) []byte {
	t.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true}, Questions: []dnsmessage.Question{
		{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET},
	}}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A name exists even if it has no address of the requested family. Resolvers query
// both families at once, and would take NXDOMAIN for one as the answer for both.
func TestNameWithoutAnAddressOfTheFamilyExists(t *testing.T) {
	r, _ := serve(t, twoNetworks(t))
	for _, kind := range []dnsmessage.Type{dnsmessage.TypeAAAA, dnsmessage.TypeMX, dnsmessage.TypeTXT, 65} {
		var m dnsmessage.Message
		if err := m.Unpack(exchange(t, r, "udp", question(t, "db.", kind))); err != nil || m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) != 0 {
			t.Errorf("%v: %+v, %v", kind, m, err)
		}
	}
}

func TestMessagesThatAreNoQuestionAreAnsweredOrDropped(t *testing.T) {
	r, _ := serve(t, twoNetworks(t))
	good := question(t, "db.", dnsmessage.TypeA)
	two := slices.Clone(good)
	two[5] = 2 // announces two questions, contains one
	update := slices.Clone(good)
	update[2] |= 5 << 3
	huge := append(slices.Clone(good[:12]), bytes.Repeat([]byte{63}, 9000)...)
	for name, c := range map[string]struct {
		msg  []byte
		want dnsmessage.RCode
	}{
		"cut off": {good[:14], dnsmessage.RCodeFormatError}, "two questions": {two, dnsmessage.RCodeFormatError},
		"an update": {update, dnsmessage.RCodeNotImplemented}, "huge": {huge, dnsmessage.RCodeFormatError},
	} {
		for _, network := range []string{"udp", "tcp"} {
			got := exchange(t, r, network, c.msg)
			if len(got) < 12 || got[0] != 0 || got[1] != 7 || got[2]&0x80 == 0 || dnsmessage.RCode(got[3]&15) != c.want {
				t.Errorf("%s over %s: %x", name, network, got)
			}
		}
	}
	// A response must not be answered: two servers would answer each other for ever.
	if got := refusal([]byte{0, 7, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0}); got != nil {
		t.Errorf("to an answer: %x", got)
	}
}

func TestServerThatRefusesIsNotTheLastWord(t *testing.T) {
	refuses, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { refuses.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := refuses.ReadFromUDP(buf)
			if err != nil {
				return
			}
			buf[2], buf[3] = buf[2]|0x80, 5
			refuses.WriteToUDP(buf[:n], from)
		}
	}()
	v := twoNetworks(t)
	v.Upstream = []string{refuses.LocalAddr().String(), upstream(t, func(dnsmessage.Question) {})}
	r, _ := serve(t, v)
	if got, err := r.LookupHost(t.Context(), "example.test."); err != nil || len(got) != 1 || got[0] != "192.0.2.7" {
		t.Errorf("%v, %v", got, err)
	}
	v.Upstream = v.Upstream[:1]
	r, _ = serve(t, v)
	var m dnsmessage.Message
	if err := m.Unpack(exchange(t, r, "udp", question(t, "example.test.", dnsmessage.TypeA))); err != nil || m.RCode != dnsmessage.RCodeRefused {
		t.Errorf("alone: %+v, %v", m, err)
	}
}

// Of a thousand concurrent questions half go to a slow server. All must be
// answered, and a waiting question must not hold a buffer.
func TestThousandQuestionsAtOnceAreAllAnswered(t *testing.T) {
	const n = 1000
	waiting, open := make(chan struct{}, n), make(chan struct{})
	v := twoNetworks(t)
	late, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { late.Close() })
	late.SetReadBuffer(4 << 20)
	go func() {
		for {
			buf := make([]byte, 512)
			k, from, err := late.ReadFromUDP(buf)
			if err != nil {
				return
			}
			waiting <- struct{}{}
			go func() {
				<-open
				buf[2], buf[3] = buf[2]|0x80, 3
				late.WriteToUDP(buf[:k], from)
			}()
		}
	}()
	v.Upstream = []string{late.LocalAddr().String()}
	r, _ := serve(t, v)
	c, err := r.Dial(t.Context(), "udp", "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.(*net.UDPConn).SetReadBuffer(4 << 20)
	var before, during runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range n {
		q := question(t, "db.", dnsmessage.TypeA)
		if i%2 == 1 {
			q = question(t, "elsewhere.example.", dnsmessage.TypeA)
		}
		q[0], q[1] = byte(i>>8), byte(i)
		if _, err := c.Write(q); err != nil {
			t.Fatal(err)
		}
	}
	for range n / 2 {
		<-waiting
	}
	runtime.ReadMemStats(&during)
	if grown := int64(during.HeapInuse+during.StackInuse) - int64(before.HeapInuse+before.StackInuse); grown > 24<<20 {
		t.Errorf("%d waiting questions take %d bytes of memory", n/2, grown)
	}
	close(open)
	seen := map[int]bool{}
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, 4096)
	for len(seen) < n {
		k, err := c.Read(buf)
		if err != nil || k < 12 {
			t.Fatalf("%d of %d questions were answered: %v", len(seen), n, err)
		}
		id := int(buf[0])<<8 | int(buf[1])
		want := dnsmessage.RCodeSuccess
		if id%2 == 1 {
			want = dnsmessage.RCodeNameError
		}
		if dnsmessage.RCode(buf[3]&15) != want {
			t.Errorf("question %d: code %d", id, buf[3]&15)
		}
		seen[id] = true
	}
}

// Idle connections must not keep others from asking.
func TestIdleConnectionsAreBounded(t *testing.T) {
	r, _ := serve(t, twoNetworks(t))
	for range sessions - 1 {
		c, err := r.Dial(t.Context(), "tcp", "")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	var m dnsmessage.Message
	if err := m.Unpack(exchange(t, r, "tcp", question(t, "db.", dnsmessage.TypeA))); err != nil || len(m.Answers) != 1 {
		t.Errorf("%+v, %v", m, err)
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
		addrs := tab.lookup("www", false).addrs
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

// upstream is an upstream server that knows only example.test.
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
	// A closed port answers with an ICMP error at once.
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
		} else if no := refusal(b); no != nil && !answers(no, b, dnsmessage.Question{}) {
			t.Errorf("%x is no answer to %x", no, b)
		}
	})
}
