// SPDX-License-Identifier: Apache-2.0

// Package firewall applies the rules of package nft to the kernel, each change as
// one transaction, and compares the kernel's state with them. It owns one table.
// In other programs' packet filters it adds rules that accept the bridges'
// packets, removes them again, and changes nothing else.
package firewall

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/dump"
	"holdfast/internal/network/nft"
)

// socketBuffer has room for a transaction of tens of thousands of elements and
// the answers to it. It is a limit, not an allocation.
const socketBuffer = 16 << 20

// chunk is the number of elements in one message. A netlink attribute holds 64
// KiB, and an IPv6 element with its owner takes 150 bytes.
const chunk = 256

// Table is the engine's nftables table in the network namespace that Open was
// called in. Its methods may be called concurrently.
type Table struct {
	name    string
	destroy bool

	mu    sync.Mutex
	conn  *nftables.Conn
	raw   *socket
	rules dump.Nftables

	// hooked holds the other tables that Admit found, as "family name". The value
	// is true if the table has a forward hook. Watch reads it.
	hooked atomic.Pointer[map[string]bool]
}

// Open opens a connection. It changes nothing.
func Open(name string) (*Table, error) {
	raw, err := openSocket()
	if err != nil {
		return nil, err
	}
	t := &Table{name: name, destroy: canDestroy(), raw: raw}
	if err := t.dial(); err != nil {
		raw.Close()
		return nil, err
	}
	return t, nil
}

func (t *Table) dial() error {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetReadBuffer(socketBuffer), c.SetWriteBuffer(socketBuffer))
	}))
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t.conn = conn
	return nil
}

// Close closes the connection. The table stays.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return errors.Join(t.rules.Close(), t.conn.CloseLasting(), t.raw.Close())
}

// Add adds elements to their maps, in one transaction. An element that exists
// already is not an error; a port with another target is (EEXIST).
func (t *Table) Add(elements []nft.Element) error {
	if len(elements) == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	table := t.table()
	if err := t.queue(table, elements, t.conn.SetAddElements); err != nil {
		return err
	}
	return t.flush("publish")
}

// Delete deletes elements. Missing elements are not an error.
func (t *Table) Delete(elements []nft.Element) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, b := range t.DeleteBatches(elements) {
		if err := t.raw.send(b); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("nftables table %s: remove published ports: %w", t.name, err)
		}
	}
	return nil
}

// DeleteBatches returns the messages that Delete would send.
func (t *Table) DeleteBatches(elements []nft.Element) [][]byte {
	return nft.DeleteBatches(t.name, elements, t.destroy)
}

// Remove deletes the table with everything in it, and what Admit added to other
// tables.
func (t *Table) Remove() error {
	if _, err := t.Admit(Admission{}); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conn.AddTable(t.table())
	t.conn.DelTable(t.table())
	return t.flush("remove")
}

func (t *Table) table() *nftables.Table {
	return &nftables.Table{Name: t.name, Family: nftables.TableFamilyINet}
}

// flush sends the queued messages. After an error the connection may still have
// answers to them in its socket, so it is replaced.
func (t *Table) flush(what string) error {
	err := t.conn.Flush()
	if err == nil {
		return nil
	}
	_ = t.conn.CloseLasting()
	return errors.Join(fmt.Errorf("nftables table %s: %s: %w", t.name, what, err), t.dial())
}

func (t *Table) queue(table *nftables.Table, elements []nft.Element, do func(*nftables.Set, []nftables.SetElement) error) error {
	byMap := map[string][]nftables.SetElement{}
	for _, e := range elements {
		if err := e.Check(); err != nil {
			return err
		}
		m := nft.MapOf(e)
		byMap[m] = append(byMap[m], nftables.SetElement{Key: e.Key(), Val: e.Value(), Comment: e.Owner})
	}
	for name, es := range byMap {
		for len(es) > 0 {
			n := min(len(es), chunk)
			if err := do(&nftables.Set{Table: table, Name: name, IsMap: es[0].Val != nil}, es[:n]); err != nil {
				return fmt.Errorf("nftables table %s: map %s: %w", t.name, name, err)
			}
			es = es[n:]
		}
	}
	return nil
}

// queueAll queues a whole table.
func (t *Table) queueAll(rs nft.Ruleset) error {
	table := t.conn.AddTable(t.table())
	for _, m := range rs.Maps {
		if err := t.conn.AddSet(set(table, m), nil); err != nil {
			return fmt.Errorf("nftables table %s: map %s: %w", t.name, m.Name, err)
		}
		if err := t.queue(table, m.Elements, t.conn.SetAddElements); err != nil {
			return err
		}
	}
	// A rule may jump to any chain, so all of them come first.
	for _, c := range rs.Chains {
		t.conn.AddChain(chain(table, c))
	}
	for _, c := range rs.Chains {
		t.queueRules(table, c)
	}
	return nil
}

// fingerprintType is the type of our entry in a rule's user data, which is a list
// of type, length, value. nft knows the types 0 (comment) and 1, and skips
// others.
const fingerprintType = 0xf0

func set(table *nftables.Table, m nft.Map) *nftables.Set {
	addr := nftables.TypeIPAddr
	if m.V6 {
		addr = nftables.TypeIP6Addr
	}
	key := []nftables.SetDatatype{nftables.TypeInetProto, nftables.TypeInetService}
	if m.Addr {
		key = append([]nftables.SetDatatype{addr}, key...)
	}
	s := &nftables.Set{
		Table: table, Name: m.Name, IsMap: !m.Set,
		KeyType:      nftables.MustConcatSetType(key...),
		KeyByteOrder: binaryutil.BigEndian,
	}
	if s.IsMap {
		s.DataType = nftables.MustConcatSetType(addr, nftables.TypeInetService)
	}
	return s
}

func chain(table *nftables.Table, c nft.Chain) *nftables.Chain {
	nc := &nftables.Chain{Name: c.Name, Table: table}
	if c.Hook == "" {
		return nc
	}
	hook := map[string]*nftables.ChainHook{
		"prerouting":  nftables.ChainHookPrerouting,
		"output":      nftables.ChainHookOutput,
		"forward":     nftables.ChainHookForward,
		"postrouting": nftables.ChainHookPostrouting,
	}[c.Hook]
	policy := nftables.ChainPolicyAccept
	nc.Type, nc.Hooknum, nc.Policy = nftables.ChainType(c.Type), hook, &policy
	nc.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(c.Priority))
	return nc
}

// MatchInterface returns expressions that match packets that come in, or go out, by an
// interface, or with not by any other.
func MatchInterface(name string, out, not bool) []expr.Any {
	key, op := expr.MetaKeyIIFNAME, expr.CmpOpEq
	if out {
		key = expr.MetaKeyOIFNAME
	}
	if not {
		op = expr.CmpOpNeq
	}
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: padded}}
}

// lower translates a rule into the kernel's expressions. Register 1 is 16 bytes
// wide and overlaps the 4-byte registers 8 to 11; register 2 overlaps 12 to 15.
// The parts of a key or value are adjacent.
func lower(r nft.Rule) []expr.Any {
	var out []expr.Any
	add := func(es ...expr.Any) { out = append(out, es...) }
	for _, e := range r {
		switch e := e.(type) {
		case nft.Interface:
			add(MatchInterface(e.Name, e.Out, e.Not)...)
		case nft.Family:
			add(family(e.V6)...)
		case nft.Address:
			v6 := e.Prefix.Addr().Is6()
			payload := address(v6, e.Source)
			want := e.Prefix.Masked().Addr().AsSlice()
			bits := e.Prefix.Bits()
			add(family(v6)...)
			if bits == 8 || bits == 16 || bits == 32 || bits == e.Prefix.Addr().BitLen() {
				// Only whole bytes are loaded and compared.
				payload.Len = uint32(bits / 8)
				add(payload)
			} else {
				mask := make([]byte, payload.Len)
				for i := range bits {
					mask[i/8] |= 1 << (7 - i%8)
				}
				add(payload, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: payload.Len, Mask: mask, Xor: make([]byte, payload.Len)})
			}
			add(&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: want[:payload.Len]})
		case nft.DaddrLocal:
			add(&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)})
		case nft.Known:
			add(bit(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)...)
		case nft.Translated:
			add(bit(expr.CtKeySTATUS, ctStatusDNAT)...)
		case nft.Translate:
			add(translate(e.Map)...)
		case nft.In:
			add(published(e.Set)...)
		case nft.ICMP:
			proto := byte(unix.IPPROTO_ICMP)
			if e.V6 {
				proto = unix.IPPROTO_ICMPV6
			}
			add(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}})
		case nft.Port:
			proto := map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}[e.Proto]
			add(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(e.Num >> 8), byte(e.Num)}})
		case nft.Masquerade:
			add(&expr.Masq{})
		case nft.Source:
			fam := uint32(unix.NFPROTO_IPV4)
			if e.Addr.Is6() {
				fam = unix.NFPROTO_IPV6
			}
			add(&expr.Immediate{Register: 1, Data: e.Addr.AsSlice()}, &expr.NAT{Type: expr.NATTypeSourceNAT, Family: fam, RegAddrMin: 1})
		case nft.Group:
			key := expr.MetaKeyIIFGROUP
			if e.Out {
				key = expr.MetaKeyOIFGROUP
			}
			add(&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(e.Number)})
		case nft.Counter:
			add(&expr.Counter{})
		case nft.Verdict:
			add(verdict(e))
		}
	}
	return out
}

// ctStatusDNAT is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const ctStatusDNAT = 1 << 5

func family(v6 bool) []expr.Any {
	f := byte(unix.NFPROTO_IPV4)
	if v6 {
		f = unix.NFPROTO_IPV6
	}
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f}}}
}

func address(v6, source bool) *expr.Payload {
	p := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}
	if v6 {
		p.Offset, p.Len = 24, 16
	}
	if source {
		p.Offset -= p.Len
	}
	return p
}

func bit(key expr.CtKey, mask uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: 1, Key: key},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// published looks up a packet's destination, and in a map the target.
func published(m nft.Map) []expr.Any {
	var out []expr.Any
	proto, port := uint32(1), uint32(9)
	if m.Addr {
		out = append(family(m.V6), address(m.V6, false))
		proto, port = 9, 10
		if m.V6 {
			proto, port = 2, 13
		}
	}
	return append(out,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: proto},
		&expr.Payload{DestRegister: port, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: !m.Set, SetName: m.Name},
	)
}

func translate(m nft.Map) []expr.Any {
	fam, natPort := uint32(unix.NFPROTO_IPV4), uint32(9)
	if m.V6 {
		fam, natPort = unix.NFPROTO_IPV6, 2
	}
	return append(published(m), &expr.NAT{Type: expr.NATTypeDestNAT, Family: fam, RegAddrMin: 1, RegProtoMin: natPort})
}

func verdict(v nft.Verdict) *expr.Verdict {
	switch v.Kind {
	case "accept":
		return &expr.Verdict{Kind: expr.VerdictAccept}
	case "return":
		return &expr.Verdict{Kind: expr.VerdictReturn}
	case "jump":
		return &expr.Verdict{Kind: expr.VerdictJump, Chain: v.Chain}
	}
	return &expr.Verdict{Kind: expr.VerdictDrop}
}

// canDestroy reports whether the kernel has NFT_MSG_DESTROYSETELEM, which came
// with Linux 6.3. An older kernel with a backport counts as one without: it only
// gets more messages.
func canDestroy() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	parts := strings.SplitN(unix.ByteSliceToString(u.Release[:]), ".", 3)
	if len(parts) < 2 {
		return false
	}
	major, _ := strconv.Atoi(parts[0])
	minor, _ := strconv.Atoi(strings.TrimRight(parts[1], "-abcdefghijklmnopqrstuvwxyz+"))
	return major > 6 || major == 6 && minor >= 3
}
