// SPDX-License-Identifier: Apache-2.0

package networks

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/network/dump"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

func TestNamesResolveWithAndWithoutADaemon(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "--ipv6", "n")
	h.d.Docker("network", "create", "other")
	h.serve("ada", "--network", "n")
	h.serve("bob", "--network", "n", "--network-alias", "www", "--network-alias", "Bee")
	h.serve("cyd", "--network", "n", "--network-alias", "www")
	h.serve("far", "--network", "other")
	b4, b6, c4 := h.address("bob", "n"), h.address6("bob", "n"), h.address("cyd", "n")
	id := h.inspect("bob", "{{.Id}}")[:12]
	h.always(func() {
		for _, name := range []string{"bob", "BOB", "bob.n", "bee", id} {
			h.resolves("ada", name, b4)
		}
		h.resolves("ada", "www", b4, c4)
		if r := h.ask("ada", "bob", dnsmessage.TypeAAAA, false); len(r.all) != 1 || r.all[0] != b6 || !r.ednsd {
			t.Errorf("AAAA: %+v, want %s", r, b6)
		}
		if r := h.ask("ada", "bob", dnsmessage.TypeA, true); len(r.all) != 1 || r.all[0] != b4 {
			t.Errorf("over TCP: %+v", r)
		}
		if r := h.ask("ada", backwards(b4), dnsmessage.TypePTR, false); len(r.all) != 1 || r.all[0] != "bob.n." {
			t.Errorf("backwards: %+v", r)
		}
		first := map[string]bool{}
		for range 6 {
			first[h.ask("ada", "www", dnsmessage.TypeA, false).all[0]] = true
		}
		if len(first) != 2 {
			t.Errorf("the answer always begins with %v", first)
		}
		h.unknown("ada", "far") // a name on a network that the container is not on
		h.unknown("far", "bob")
		h.has("resolv.conf", h.in("ada", "cat", "/etc/resolv.conf"), "nameserver 127.0.0.11", "options ndots:0")
		if got := h.fetch("ada", "www.n"); got != "bob" && got != "cyd" {
			t.Errorf("www.n answers %q", got)
		}
	})
}

func backwards(v4 string) string {
	f := strings.Split(v4, ".")
	slices.Reverse(f)
	return strings.Join(f, ".") + ".in-addr.arpa"
}

func TestNameFollowsRenameStopAndStart(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "n")
	h.serve("ada", "--network", "n")
	h.serve("bob", "--network", "n")
	h.d.Docker("rename", "bob", "bee")
	h.pids["bee"] = h.pids["bob"]
	delete(h.pids, "bob")
	addr := h.address("bee", "n")
	h.always(func() { h.resolves("ada", "bee", addr) })
	h.d.Docker("stop", "-t", "0", "bee")
	delete(h.pids, "bee")
	h.always(func() { h.unknown("ada", "bee") })
	h.d.Docker("start", "bee")
	h.know("bee")
	addr = h.address("bee", "n")
	h.always(func() { h.resolves("ada", "bee", addr); h.reaches("bee", "ada", "ada") })
}

func TestLinksAreNamesForOneContainerAlone(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "n")
	h.serve("db", "--network", "n")
	h.serve("ada", "--network", "n", "--link", "db:database")
	h.serve("bob", "--network", "n")
	h.d.Docker("network", "create", "late")
	h.d.Docker("network", "connect", "late", "db")
	h.d.Docker("network", "connect", "--link", "db:store", "late", "bob")
	addr, late := h.address("db", "n"), h.address("db", "late")
	h.always(func() {
		h.resolves("ada", "database", addr)
		h.unknown("bob", "database")
		r := h.ask("bob", "store", dnsmessage.TypeA, false)
		if len(r.all) != 1 || r.all[0] != late && r.all[0] != addr {
			t.Errorf("store: %+v", r)
		}
	})
}

func TestLinksOfTheDefaultNetworkFollowTheContainerTheyName(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.serve("db")
	h.serve("ada", "--link", "db:database")
	h.in("ada", "sh", "-c", "echo 192.0.2.9 printer >> /etc/hosts")
	linked := func(addr string) {
		t.Helper()
		hosts := ""
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
			if hosts = h.in("ada", "cat", "/etc/hosts"); strings.Contains(hosts, addr+"\tdatabase") {
				break
			}
		}
		h.has("hosts file", hosts, addr+"\tdatabase", "192.0.2.9 printer")
		h.equal("lines of the link", fmt.Sprint(strings.Count(hosts, "\tdatabase")), "1")
	}
	was := h.address("db", "bridge")
	h.always(func() { linked(was) })
	// The container gets another address when it is connected again.
	h.d.Docker("network", "disconnect", "bridge", "db")
	h.run("other", image, "sleep", "9999")
	h.d.Docker("network", "connect", "bridge", "db")
	is := h.address("db", "bridge")
	if is == was {
		t.Fatalf("the container still has the address %s", is)
	}
	h.always(func() { linked(is) })
	h.d.Docker("restart", "-t", "0", "db")
	h.know("db")
	h.equal("address after a restart", h.address("db", "bridge"), is)
	h.always(func() { linked(is) })
}

// The resolvers that programs use: the C library's, which runs on the host with
// the container's network and resolv.conf, and busybox's in the container.
func TestResolversOfProgramsFindNames(t *testing.T) {
	t.Parallel()
	up := newUpstream(t, "127.0.4.53", 4)
	h := newHouse(t, map[string]any{"dns": []string{up.addr}})
	h.d.Docker("network", "create", "--ipv6", "n_1")
	h.serve("bob", "--network", "n_1", "--network-alias", "the_alias")
	h.run("ada", "--network", "n_1", "--link", "bob:linked", "--dns-search", "corp.example", "--add-host", "host.docker.internal:host-gateway", image, "sleep", "9999")
	b4, b6 := h.address("bob", "n_1"), h.address6("bob", "n_1")
	gw := h.d.Address.Addr().String() // on any network
	pid := fmt.Sprint(h.pids["ada"])
	getent := func(db, name string) string {
		t.Helper()
		return h.host("unshare", "-m", "sh", "-c", `for f in resolv.conf hosts; do cp /proc/$1/root/etc/$f /tmp/$f.$1 && mount --bind /tmp/$f.$1 /etc/$f; rm /tmp/$f.$1; done
			nsenter -t $1 -n -- getent "$2" "$3"`, "sh", pid, db, name)
	}
	h.always(func() {
		for _, name := range []string{"bob", "BOB", "bob.n_1", "the_alias", "linked", h.ids["bob"][:12]} {
			h.has("ahostsv4 "+name, getent("ahostsv4", name), b4)
			h.has("ahostsv6 "+name, getent("ahostsv6", name), b6)
			h.has("nslookup "+name, h.in("ada", "nslookup", name+"."), b4, b6)
		}
		h.has("backwards", getent("hosts", b4), "bob.n_1")
		h.has("backwards", getent("hosts", b6), "bob.n_1")
		h.has("host-gateway", getent("ahostsv4", "host.docker.internal"), gw)
		h.has("another's", getent("ahostsv4", "web.example.com"), "192.0.2.4")
		h.has("wget", h.in("ada", "wget", "-qO-", "http://bob/"), "bob")
	})
	if up.asked("bob.") || up.asked("the_alias.") || up.asked("bob.n_1.") {
		t.Errorf("queries for container names were forwarded to the host's name server: %v", up.seen)
	}
}

// upstream is a name server of the host.
type upstream struct {
	addr string
	mu   sync.Mutex
	seen []string
}

// newUpstream starts a name server on a loopback address of the host. For big.
// the answer is larger than a datagram, for mute. there is no answer, and for
// other names it is 192.0.2.N.
func newUpstream(t *testing.T, addr string, n byte) *upstream {
	t.Helper()
	u := &upstream{addr: addr}
	udp, err := net.ListenPacket("udp", net.JoinHostPort(addr, "53"))
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", net.JoinHostPort(addr, "53"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { udp.Close(); tcp.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			k, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			if a := u.answer(buf[:k], n, false); a != nil {
				udp.WriteTo(a, from)
			}
		}
	}()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 4096)
			if k, err := c.Read(buf); err == nil && k > 2 {
				a := u.answer(buf[2:k], n, true)
				c.Write(append([]byte{byte(len(a) >> 8), byte(len(a))}, a...))
			}
			c.Close()
		}
	}()
	return u
}

func (u *upstream) answer(q []byte, n byte, tcp bool) []byte {
	var m dnsmessage.Message
	if m.Unpack(q) != nil || len(m.Questions) != 1 {
		return nil
	}
	name := m.Questions[0].Name
	u.mu.Lock()
	u.seen = append(u.seen, name.String())
	u.mu.Unlock()
	m.Response, m.RecursionAvailable = true, true
	h := dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: 60}
	switch {
	case name.String() == "mute.":
		return nil
	case name.String() == "big." && !tcp:
		m.Truncated = true
	case name.String() == "big.":
		for i := range 40 {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.TXTResource{TXT: []string{strings.Repeat("x", 200), fmt.Sprint(i)}}})
		}
	default:
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, n}}})
	}
	b, _ := m.Pack()
	return b
}

func (u *upstream) asked(name string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Contains(u.seen, name)
}

func TestOtherNamesAreAskedOfTheHostsServers(t *testing.T) {
	t.Parallel()
	// The servers are on loopback, where a container itself could not reach
	// them.
	one, two := newUpstream(t, "127.0.1.53", 1), newUpstream(t, "127.0.2.53", 2)
	h := newHouse(t, map[string]any{"dns": []string{one.addr, two.addr}})
	h.d.Docker("network", "create", "n")
	h.d.Docker("network", "create", "--internal", "in")
	h.run("ada", "--network", "n", "--dns-search", "example.org", "--dns-option", "ndots:2", image, "sleep", "9999")
	h.run("bob", "--network", "n", "--dns", "127.0.3.53", "--dns", two.addr, image, "sleep", "9999")
	h.run("shut", "--network", "in", image, "sleep", "9999")
	h.always(func() {
		h.resolves("ada", "somewhere.example.com", "192.0.2.1")
		h.resolves("bob", "somewhere.example.com", "192.0.2.2") // its first server does not answer
		if r := h.ask("ada", "big", dnsmessage.TypeTXT, true); len(r.all) != 40 {
			t.Errorf("over TCP: %d answers", len(r.all))
		}
		h.has("resolv.conf", h.in("ada", "cat", "/etc/resolv.conf"), "search example.org", "ndots:2")
		h.unknown("shut", "leak.example.com")
		h.unknown("ada", "nobody.n")
		if r := h.ask("ada", backwards(h.net+".128.250"), dnsmessage.TypePTR, false); r.code != dnsmessage.RCodeNameError {
			t.Errorf("reverse lookup of an unused address of the network: %+v", r)
		}
	})
	if r := h.ask("ada", "mute", dnsmessage.TypeA, false); r.code != dnsmessage.RCodeServerFailure {
		t.Errorf("query to servers that do not answer: %+v", r)
	}
	for _, u := range []*upstream{one, two} {
		if u.asked("leak.example.com.") || u.asked("nobody.n.") || u.asked(backwards(h.net+".128.250")+".") {
			t.Errorf("queries for container names were forwarded to %s: %v", u.addr, u.seen)
		}
	}
}

func TestContainerMayListenOnPort53Itself(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "n")
	h.serve("bob", "--network", "n")
	h.run("ada", "--network", "n", image, "sh", "-c", "hostname > /tmp/index.html; exec httpd -f -p 53 -h /tmp")
	b, a := h.address("bob", "n"), h.address("ada", "n")
	h.always(func() {
		h.resolves("ada", "bob", b)
		h.reaches("bob", a+":53", "ada")
		h.reaches("ada", "127.0.0.1:53", "ada")
	})
}

// Connection tracking slows down every packet, not only those of name queries.
func TestNamesNeedNoConnectionTracking(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "n")
	h.serve("bob", "--network", "n")
	h.run("ada", "--network", "n", image, "sleep", "9999")
	b := h.address("bob", "n")
	ask := func() {
		h.resolves("ada", "bob", b)
		if r := h.ask("ada", "bob", dnsmessage.TypeA, true); !slices.Equal(r.all, []string{b}) {
			t.Errorf("over TCP: %v", r)
		}
		h.reaches("ada", "bob", "bob")
	}
	tracked := func() (n int) {
		h.within("ada", func() error {
			flows, err := dump.Whole(func() ([]*netlink.ConntrackFlow, error) {
				return netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
			})
			n = len(flows)
			return err
		})
		return n
	}
	h.always(func() {
		ask()
		if n := tracked(); n != 0 {
			t.Errorf("%d connections of the container are tracked", n)
		}
	})

	// A container whose own filter uses connection tracking sees its
	// connections as they are.
	h.host("nsenter", "-t", fmt.Sprint(h.pids["ada"]), "-n", "nft", `table inet own {
		chain in { type filter hook input priority 0; policy drop; ct state established,related accept; iif lo ct state new accept; }
		chain out { type filter hook output priority 0; ct state invalid drop; ip saddr 127.0.0.11 ct state new drop; }
	}`)
	h.always(ask)
	if tracked() == 0 {
		t.Error("no connection is tracked, so the filter was not reached")
	}
}

// A daemon that dies while the last container of a network is removed leaves
// the network's name file behind. The next daemon removes it, and does not
// rewrite the name files of other networks while it restores one container
// after the other.
func TestNamesThatADaemonLeftAreRemovedByTheNext(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "n")
	h.serve("ada", "--network", "n")
	h.serve("bob", "--network", "n")
	dir := h.d.ExecRoot + "/names/"
	mine := dir + strings.TrimSpace(h.d.Docker("network", "inspect", "-f", "{{.Id}}", "n")) + ".json"
	before, err := os.Stat(mine)
	if err != nil {
		t.Fatal(err)
	}
	h.d.Kill9()
	for _, left := range []string{strings.Repeat("a", 64) + ".json", strings.Repeat("b", 64) + ".json.tmp"} {
		if err := os.WriteFile(dir+left, []byte(`{"schema":1,"name":"gone"}`), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	h.d.Start()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("names: %v, %v", entries, err)
	}
	if after, err := os.Stat(mine); err != nil || !os.SameFile(before, after) {
		t.Errorf("the name file of an unchanged network was replaced: %v", err)
	}
	h.reaches("ada", "ada", "ada")
}
