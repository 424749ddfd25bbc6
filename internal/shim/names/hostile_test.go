// SPDX-License-Identifier: Apache-2.0

package names

import (
	"encoding/binary"
	"net"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// liar is an upstream server that answers each question with the messages that lies
// returns.
func liar(t *testing.T, lies func(question []byte, q query) [][]byte) string {
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
			if q, ok := parse(buf[:n]); ok {
				for _, lie := range lies(buf[:n], q) {
					c.WriteToUDP(lie, from)
				}
			}
		}
	}()
	return c.LocalAddr().String()
}

// says returns an answer for name with that address.
func (q query) says(name string, addr [4]byte) []byte {
	other := q
	other.question.Name = dnsmessage.MustNewName(name)
	return other.answer(dnsmessage.RCodeSuccess, func(b *dnsmessage.Builder, h dnsmessage.ResourceHeader) error {
		return b.AResource(h, dnsmessage.AResource{A: addr})
	})
}

// To forge an answer of an upstream server, an attacker must guess a port and an
// ID, which is not the client's, and repeat the question.
func TestForgedAnswersAreNotBelieved(t *testing.T) {
	seen := make(chan uint16, 64)
	v := twoNetworks(t)
	v.Upstream = []string{liar(t, func(_ []byte, q query) [][]byte {
		seen <- q.header.ID
		wrongID := q.says("bank.test.", [4]byte{6, 6, 6, 6})
		wrongID[1]++
		wrongType := q
		wrongType.question.Type = dnsmessage.TypeMX
		echo := append([]byte(nil), q.raw...) // a question, not an answer
		empty := []byte{wrongID[0], wrongID[1] - 1, 0x81, 0x80, 0, 0, 0, 0, 0, 0, 0, 0}
		return [][]byte{
			wrongID, q.says("evil.test.", [4]byte{6, 6, 6, 6}), wrongType.missing(), echo, empty, empty[:11], nil,
			q.says("BANK.test.", [4]byte{192, 0, 2, 7}),
		}
	})}
	r, _ := serve(t, v)
	for range 20 {
		var m dnsmessage.Message
		got := exchange(t, r, "udp", question(t, "bank.test.", dnsmessage.TypeA))
		if err := m.Unpack(got); err != nil || m.ID != 7 || len(m.Answers) != 1 || m.Answers[0].Body.(*dnsmessage.AResource).A != [4]byte{192, 0, 2, 7} {
			t.Fatalf("%+v, %v", m, err)
		}
	}
	ids := map[uint16]bool{}
	for range len(seen) {
		ids[<-seen] = true
	}
	if len(ids) < 15 {
		t.Errorf("20 questions with the client's ID 7 had %d IDs on their way to the host's server", len(ids))
	}
}

// A server that could not parse the question returns an error without it.
func TestErrorWithoutTheQuestionIsAnAnswer(t *testing.T) {
	v := twoNetworks(t)
	v.Upstream = []string{liar(t, func(q []byte, _ query) [][]byte {
		return [][]byte{{q[0], q[1], 0x80, 0x80 | byte(dnsmessage.RCodeNotImplemented), 0, 0, 0, 0, 0, 0, 0, 0}}
	})}
	r, _ := serve(t, v)
	if got := exchange(t, r, "udp", question(t, "x.test.", dnsmessage.TypeA)); len(got) != 12 || got[0] != 0 || got[1] != 7 || got[3]&15 != 4 {
		t.Errorf("%x", got)
	}
}

// An answer over UDP that is larger than the client accepts is truncated, so that
// the client asks over TCP. Over TCP a message shorter than its length is no
// answer.
func TestAnswersThatLieAboutTheirSize(t *testing.T) {
	v := twoNetworks(t)
	v.Upstream = []string{liar(t, func(_ []byte, q query) [][]byte {
		return [][]byte{append(q.missing(), make([]byte, 60000)...)}
	})}
	r, _ := serve(t, v)
	got := exchange(t, r, "udp", question(t, "x.test.", dnsmessage.TypeA))
	if len(got) > smallest || got[2]&2 == 0 {
		t.Errorf("%d bytes, flags %x", len(got), got[2])
	}

	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte{0xff, 0xff, 0, 7, 0x80, 0})
			c.Close()
		}
	}()
	v.Upstream = []string{l.Addr().String()}
	r, _ = serve(t, v)
	if got := exchange(t, r, "tcp", question(t, "x.test.", dnsmessage.TypeA)); len(got) < 12 || got[3]&15 != byte(dnsmessage.RCodeServerFailure) {
		t.Errorf("%x", got)
	}
}

// If a container floods its name server with questions that no upstream server
// answers, it gets errors. The server stays within its memory bound and still
// answers for local names.
func TestFloodOfQuestionsIsBounded(t *testing.T) {
	silent, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	v := twoNetworks(t)
	v.Upstream = []string{silent.LocalAddr().String()}
	r, _ := serve(t, v)
	c, err := r.Dial(t.Context(), "udp", "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var before, during runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	goroutines := runtime.NumGoroutine()
	q := question(t, "nobody.answers.test.", dnsmessage.TypeA)
	const flood = 8 * inFlight
	answered := make(chan int, 1)
	go func() { // read the immediate refusals: otherwise they would fill the socket
		buf := make([]byte, 512)
		n := 0
		for {
			if _, err := c.Read(buf); err != nil {
				answered <- n
				return
			}
			n++
		}
	}()
	for i := range flood {
		binary.BigEndian.PutUint16(q, uint16(i))
		if _, err := c.Write(q); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		var m dnsmessage.Message
		if err := m.Unpack(exchange(t, r, "udp", question(t, "db.", dnsmessage.TypeA))); err != nil || len(m.Answers) != 1 {
			t.Errorf("local name during the flood: %+v, %v", m, err)
		}
	}
	runtime.ReadMemStats(&during)
	if n := runtime.NumGoroutine() - goroutines; n > inFlight+sessions {
		t.Errorf("%d more goroutines", n)
	}
	if grown := int64(during.HeapInuse+during.StackInuse) - int64(before.HeapInuse+before.StackInuse); grown > 32<<20 {
		t.Errorf("the flood takes %d bytes of memory", grown)
	}
	c.SetReadDeadline(time.Now().Add(time.Second))
	if n := <-answered; n == 0 {
		t.Error("no question of the flood was refused")
	}
}

// Without a free descriptor the server pauses before it accepts again, instead of
// spinning.
func TestServerWithoutDescriptorsWaits(t *testing.T) {
	s := &Server{closed: make(chan struct{})}
	begin := time.Now()
	if !s.pause(unix.EMFILE) || time.Since(begin) < acceptAgain {
		t.Error("no pause after EMFILE")
	}
	if !s.pause(unix.ECONNABORTED) {
		t.Error("an aborted connection stops the server")
	}
	close(s.closed)
	if s.pause(unix.EMFILE) {
		t.Error("the server continues after Close")
	}
}

// FuzzAnswer checks arbitrary answers of upstream servers against a client's
// question.
func FuzzAnswer(f *testing.F) {
	ask := func(name string) query {
		m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true}, Questions: []dnsmessage.Question{
			{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET},
		}}
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		q, ok := parse(b)
		if !ok {
			f.Fatal("no question")
		}
		return q
	}
	q := ask("bank.test.")
	f.Add("bank.test.", q.says("bank.test.", [4]byte{192, 0, 2, 7}))
	f.Add("bank.test.", q.says("BANK.test.", [4]byte{192, 0, 2, 7}))
	f.Add("bank.test.", q.missing())
	f.Add("bank.test.", q.failure()[:12])
	f.Add(".", []byte{0, 7, 0x84, 0x05, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add("bank.test.", append(q.missing()[:12], 0xc0, 12, 0, 1, 0, 1)) // a compression pointer to itself
	f.Fuzz(func(t *testing.T, name string, b []byte) {
		n, err := dnsmessage.NewName(name)
		if err != nil {
			return
		}
		asked := dnsmessage.Question{Name: n, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
		q := query{raw: []byte{0, 7}, header: dnsmessage.Header{ID: 7}, question: asked, size: smallest, room: smallest}
		if !answers(b, q.raw, asked) {
			return
		}
		if len(b) < 12 || b[0] != 0 || b[1] != 7 || b[2]&0x80 == 0 {
			t.Errorf("%x is accepted", b)
		}
		var p dnsmessage.Parser
		h, err := p.Start(b)
		if err != nil {
			t.Fatalf("%x is accepted: %v", b, err)
		}
		got, err := p.Question()
		switch {
		case err == dnsmessage.ErrSectionDone && h.RCode != dnsmessage.RCodeSuccess:
		case err != nil || got.Type != asked.Type || got.Name.Length != asked.Name.Length:
			t.Errorf("%x is accepted as the answer to %s", b, name)
		}
		if out := q.cut(b); len(out) > smallest {
			t.Errorf("%d bytes for a client that accepts %d", len(out), smallest)
		}
	})
}

// FuzzTable looks arbitrary names and addresses up in networks and members with
// arbitrary names.
func FuzzTable(f *testing.F) {
	f.Add("web", "front", "www", "10.1.0.2", "web.front.")
	f.Add("", "", "", "", ".")
	f.Add("xn--a", "dev", "a\nb", "fd00::2", "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.")
	f.Fuzz(func(t *testing.T, member, network, alias, addr, asked string) {
		name, err := dnsmessage.NewName(asked)
		if err != nil {
			return
		}
		dir := t.TempDir()
		put(t, filepath.Join(dir, "n.json"), Network{Name: network, Subnets: []string{"10.1.0.0/24", addr}, Members: []Member{
			{Name: member, Names: []string{alias}, Addresses: []string{addr}},
		}})
		put(t, filepath.Join(dir, "v.json"), View{Networks: []string{filepath.Join(dir, "n.json")}, Links: map[string]string{alias: member}})
		tab := table{path: filepath.Join(dir, "v.json")}
		for _, kind := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypePTR} {
			q := query{raw: make([]byte, 12), question: dnsmessage.Question{Name: name, Type: kind, Class: dnsmessage.ClassINET}, size: smallest, room: smallest}
			answer, ours := tab.local(q)
			if !ours || answer == nil {
				continue
			}
			var m dnsmessage.Message
			if err := m.Unpack(q.fit(answer)); err != nil {
				t.Errorf("the answer to %s %q can't be read: %v", kind, asked, err)
			}
		}
	})
}
