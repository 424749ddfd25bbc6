// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/dump"
	"holdfast/internal/network/firewall"
	"holdfast/internal/network/swarmlb"
	"holdfast/internal/osthread"
)

// maxTargets is the number of targets whose map fits into one message.
const maxTargets = 1000

// tries bounds the repetitions of a change that another process interferes with: the
// daemon and the swarm process may change a table at the same time, and so may a
// process in the namespace.
const tries = 50

// apply makes the table right.
func (s *space) apply(want swarmlb.Table) (changed bool, err error) {
	for range tries {
		c := false
		c, err = s.applyOnce(want)
		changed = changed || c
		if !conflict(err) {
			break
		}
	}
	return changed, err
}

// conflict reports whether the error shows that the table is not as it was listed.
func conflict(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY)
}

// applyOnce compares and changes the table.
//
// A change is in two transactions. The first one makes new connections take the
// right way. The second one removes the chains that are not used any more, or adds
// the chain that marks a whole table as complete. Flows that have to be forgotten
// are forgotten between the two. So if the process dies in between, the next apply
// finds the rest of the change and completes it.
func (s *space) applyOnce(want swarmlb.Table) (changed bool, err error) {
	for _, t := range want.Targets {
		if len(t.Flows.To) > maxTargets {
			return false, fmt.Errorf("%s has %d targets: more than %d are not supported", t.Key.Text, len(t.Flows.To), maxTargets)
		}
	}
	have, err := s.chains(want.Name)
	if err != nil {
		return false, err
	}
	if !want.Needed() {
		return s.remove(want.Name)
	}
	complete := true
	for _, c := range want.Chains {
		complete = complete && slices.Contains(have, c.Name)
	}
	stale := slices.DeleteFunc(slices.Clone(have), func(name string) bool {
		return slices.ContainsFunc(want.Chains, func(c swarmlb.Chain) bool { return c.Name == name }) ||
			slices.ContainsFunc(want.Targets, func(t swarmlb.Target) bool { return t.Chain.Name == name })
	})
	for _, name := range stale {
		complete = complete && want.Key(name) != nil
	}
	if complete {
		changed, err = s.update(want, have, stale)
		if !conflict(err) {
			return changed, err
		}
	}
	return true, s.replace(want)
}

// chains returns the names of a table's chains.
func (s *space) chains(table string) ([]string, error) {
	all, err := listed(s, func() ([]*nftables.Chain, error) { return s.filter.ListChainsOfTableFamily(nftables.TableFamilyIPv4) })
	if err != nil {
		return nil, fmt.Errorf("nftables: list chains: %w", err)
	}
	var names []string
	for _, c := range all {
		if c.Table.Name == table {
			names = append(names, c.Name)
		}
	}
	return names, nil
}

// listed returns a complete listing of the namespace's nftables.
func listed[T any](s *space, list func() ([]T, error)) (all []T, err error) {
	err = osthread.InNetns(s.file, func() error {
		var generations dump.Nftables
		defer generations.Close()
		all, err = dump.Ruleset(&generations, list)
		return err
	})
	return all, err
}

func tableOf(name string) *nftables.Table {
	return &nftables.Table{Name: name, Family: nftables.TableFamilyIPv4}
}

func (s *space) remove(name string) (changed bool, err error) {
	tables, err := listed(s, func() ([]*nftables.Table, error) { return s.filter.ListTablesOfFamily(nftables.TableFamilyIPv4) })
	if err != nil {
		return false, fmt.Errorf("nftables: list tables: %w", err)
	}
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == name }) {
		return false, nil
	}
	s.filter.DelTable(tableOf(name))
	if err := s.commit(); err != nil && !errors.Is(err, unix.ENOENT) {
		return false, fmt.Errorf("nftables table %s: remove: %w", name, err)
	}
	return true, nil
}

// update changes the targets of a table that is right otherwise.
func (s *space) update(want swarmlb.Table, have, stale []string) (changed bool, err error) {
	table := tableOf(want.Name)
	var fresh []swarmlb.Target
	old := map[string]bool{} // keys of stale chains
	for _, name := range stale {
		old[string(want.Key(name))] = true
	}
	for _, t := range want.Targets {
		if !slices.Contains(have, t.Chain.Name) {
			fresh = append(fresh, t)
		}
	}
	if len(fresh)+len(stale) == 0 {
		return false, nil
	}
	forget := slices.Clone(fresh)
	var gone []nftables.SetElement
	for key := range old {
		// A chain whose successor exists is left of an interrupted change, and has no
		// element any more.
		i := slices.IndexFunc(want.Targets, func(t swarmlb.Target) bool { return string(t.Key.Key) == key })
		if i >= 0 && slices.Contains(have, want.Targets[i].Chain.Name) {
			forget = append(forget, want.Targets[i])
			continue
		}
		gone = append(gone, nftables.SetElement{Key: []byte(key)})
		if i < 0 {
			forget = append(forget, want.Removed([]byte(key)))
		}
	}
	if err := s.swap(table, want, fresh, gone); err != nil {
		return false, fmt.Errorf("nftables table %s: %w", want.Name, err)
	}
	if _, err := s.forget(forget, unix.IPPROTO_UDP); err != nil {
		return true, fmt.Errorf("forget flows: %w", err)
	}
	for _, name := range stale {
		s.filter.DelChain(&nftables.Chain{Table: table, Name: name})
	}
	if len(stale) > 0 {
		if err := s.commit(); err != nil {
			return true, fmt.Errorf("nftables table %s: remove chains: %w", want.Name, err)
		}
	}
	return true, nil
}

// swap adds targets, and removes elements with others.
func (s *space) swap(table *nftables.Table, want swarmlb.Table, fresh []swarmlb.Target, gone []nftables.SetElement) error {
	if len(fresh)+len(gone) == 0 {
		return nil
	}
	balanced := balancedSet(table, want)
	if len(gone) > 0 {
		if err := s.filter.SetDeleteElements(balanced, gone); err != nil {
			return err
		}
	}
	if err := s.queueTargets(table, balanced, fresh); err != nil {
		return err
	}
	return s.commit()
}

// replace makes the whole table anew.
func (s *space) replace(want swarmlb.Table) error {
	fail := func(err error) error { return fmt.Errorf("nftables table %s: %w", want.Name, err) }
	table := s.filter.AddTable(tableOf(want.Name))
	s.filter.DelTable(table)
	s.filter.AddTable(table)
	balanced := balancedSet(table, want)
	if err := s.filter.AddSet(balanced, nil); err != nil {
		return fail(err)
	}
	if want.Marks.Name != "" {
		if err := s.queueMarks(table, want); err != nil {
			return fail(err)
		}
	}
	last := len(want.Chains) - 1 // the chain that marks the table as complete
	for _, c := range want.Chains[:last] {
		s.filter.AddChain(chainOf(table, c))
	}
	for _, c := range want.Chains[:last] {
		for _, r := range c.Rules {
			if err := s.queueRule(table, c.Name, r, 0); err != nil {
				return fail(err)
			}
		}
	}
	if err := s.queueTargets(table, balanced, want.Targets); err != nil {
		return fail(err)
	}
	if err := s.commit(); err != nil {
		return fail(err)
	}
	if _, err := s.forget(want.Targets, unix.IPPROTO_UDP); err != nil {
		return fail(fmt.Errorf("forget flows: %w", err))
	}
	s.filter.AddChain(chainOf(table, want.Chains[last]))
	if err := s.commit(); err != nil {
		return fail(err)
	}
	return nil
}

// queueMarks queues the maps of a task with published ports.
func (s *space) queueMarks(table *nftables.Table, want swarmlb.Table) error {
	marks := &nftables.Set{Table: table, Name: want.Marks.Name, ID: 2, IsMap: true, KeyType: nftables.TypeEtherAddr, DataType: nftables.TypeMark}
	if err := s.filter.AddSet(marks, nil); err != nil {
		return err
	}
	for part := range slices.Chunk(want.Marks.Elements, elementsPerMessage) {
		var es []nftables.SetElement
		for _, e := range part {
			es = append(es, nftables.SetElement{Key: e.Key, Val: e.Value})
		}
		if err := s.filter.SetAddElements(marks, es); err != nil {
			return err
		}
	}
	return s.filter.AddSet(&nftables.Set{
		Table: table, Name: want.Clients.Name, ID: 3, IsMap: true, DataType: nftables.TypeMark,
		KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService, nftables.TypeInetService),
		Dynamic: true, HasTimeout: true, Timeout: time.Duration(want.Clients.Seconds) * time.Second, Size: uint32(want.Clients.Size),
	}, nil)
}

// elementsPerMessage keeps a message's attribute below its limit of 64 KiB.
const elementsPerMessage = 256

// balancedSet has the number 1 in a transaction, the maps of marks 2 and 3, and the
// maps of targets those after.
func balancedSet(table *nftables.Table, want swarmlb.Table) *nftables.Set {
	s := &nftables.Set{Table: table, Name: want.Balanced.Name, ID: 1, IsMap: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeVerdict}
	if want.Name == swarmlb.IngressTable {
		s.KeyType = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	}
	return s
}

func (s *space) queueTargets(table *nftables.Table, balanced *nftables.Set, targets []swarmlb.Target) error {
	for i, t := range targets {
		s.filter.AddChain(chainOf(table, t.Chain))
		for _, r := range t.Chain.Rules {
			if err := s.queueRule(table, t.Chain.Name, r, uint32(4+i)); err != nil {
				return err
			}
		}
	}
	for part := range slices.Chunk(targets, elementsPerMessage) {
		var es []nftables.SetElement
		for _, t := range part {
			es = append(es, nftables.SetElement{Key: t.Key.Key, VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: t.Chain.Name}})
		}
		if err := s.filter.SetAddElements(balanced, es); err != nil {
			return err
		}
	}
	return nil
}

func chainOf(table *nftables.Table, c swarmlb.Chain) *nftables.Chain {
	nc := &nftables.Chain{Name: c.Name, Table: table}
	if c.Hook == "" {
		return nc
	}
	policy := nftables.ChainPolicyAccept
	nc.Type, nc.Policy = nftables.ChainType(c.Type), &policy
	nc.Hooknum = map[string]*nftables.ChainHook{
		"prerouting":  nftables.ChainHookPrerouting,
		"output":      nftables.ChainHookOutput,
		"forward":     nftables.ChainHookForward,
		"postrouting": nftables.ChainHookPostrouting,
	}[c.Hook]
	nc.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(c.Priority))
	return nc
}

// queueRule queues a rule. setID is the number that its map of targets gets in the
// transaction.
func (s *space) queueRule(table *nftables.Table, chain string, r swarmlb.Rule, setID uint32) error {
	var exprs []expr.Any
	for _, e := range r {
		if spread, ok := e.(swarmlb.Spread); ok {
			lookup, err := s.queueSpread(table, spread, setID)
			if err != nil {
				return err
			}
			exprs = append(exprs, lookup...)
			continue
		}
		exprs = append(exprs, lower(e)...)
	}
	s.filter.AddRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: chain, Table: table}, Exprs: exprs})
	return nil
}

// queueSpread queues the map of targets, and returns the expressions that use it.
// Register 1 is 16 bytes wide and overlaps the 4-byte registers 8 to 11.
func (s *space) queueSpread(table *nftables.Table, e swarmlb.Spread, setID uint32) ([]expr.Any, error) {
	m := &nftables.Set{
		Table: table, Name: "__map%d", ID: setID, Anonymous: true, Constant: true, IsMap: true,
		KeyType: nftables.TypeInteger, DataType: nftables.TypeIPAddr,
	}
	m.KeyType.Bytes = 4
	if e.WithPorts() {
		m.DataType = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	}
	var es []nftables.SetElement
	for i, t := range e.To {
		value := t.Addr().AsSlice()
		if e.WithPorts() {
			value = append(value, byte(t.Port()>>8), byte(t.Port()), 0, 0)
		}
		es = append(es, nftables.SetElement{Key: binaryutil.NativeEndian.PutUint32(uint32(i)), Val: value})
	}
	if err := s.filter.AddSet(m, es); err != nil {
		return nil, err
	}
	nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1}
	if e.WithPorts() {
		nat.RegProtoMin = 9
	}
	return []expr.Any{
		&expr.Numgen{Register: 1, Modulus: uint32(len(e.To)), Type: unix.NFT_NG_INCREMENTAL},
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: m.Name, SetID: setID},
		nat,
	}, nil
}

// lower translates an expression into the kernel's.
func lower(e swarmlb.Expr) []expr.Any {
	equal := func(load expr.Any, data ...byte) []expr.Any {
		return []expr.Any{load, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}}
	}
	masked := func(key expr.CtKey, op expr.CmpOp, mask, value uint32) []expr.Any {
		return []expr.Any{
			&expr.Ct{Register: 1, Key: key},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
			&expr.Cmp{Op: op, Register: 1, Data: binaryutil.NativeEndian.PutUint32(value)},
		}
	}
	setMark := &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1}
	setConnMark := &expr.Ct{Key: expr.CtKeyMARK, SourceRegister: true, Register: 1}
	switch e := e.(type) {
	case swarmlb.Interface:
		return firewall.MatchInterface(e.Name, e.Out, e.Not)
	case swarmlb.Proto:
		return equal(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, e.Number)
	case swarmlb.Loopback:
		p := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 1}
		if e.Source {
			p.Offset = 12
		}
		return equal(p, 127)
	case swarmlb.LocalDestination:
		return equal(&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true}, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)...)
	case swarmlb.NewFlow:
		return masked(expr.CtKeySTATE, expr.CmpOpNeq, expr.CtStateBitNEW, 0)
	case swarmlb.Direction:
		direction := byte(0)
		if e.Reply {
			direction = 1
		}
		return equal(&expr.Ct{Register: 1, Key: expr.CtKeyDIRECTION}, direction)
	case swarmlb.Remembered:
		return masked(expr.CtKeyMARK, expr.CmpOpEq, swarmlb.MarkMask, swarmlb.Mark)
	case swarmlb.RememberSender:
		return []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
			&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: e.Map},
			setConnMark,
		}
	case swarmlb.Remember:
		return []expr.Any{&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(e.Mark)}, setMark, setConnMark}
	case swarmlb.SetMark:
		return []expr.Any{&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(e.Mark)}, setMark}
	case swarmlb.RestoreMark:
		return []expr.Any{&expr.Ct{Register: 1, Key: expr.CtKeyMARK}, setMark}
	case swarmlb.NoteClient:
		return append(client(true), &expr.Ct{Register: 2, Key: expr.CtKeyMARK},
			&expr.Dynset{SrcRegKey: 1, SrcRegData: 2, SetName: e.Map, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: time.Duration(e.Seconds) * time.Second})
	case swarmlb.AnswerClient:
		return append(client(false), &expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: e.Map}, setMark,
			&expr.Immediate{Register: 1, Data: e.Source.AsSlice()},
			&expr.Payload{
				OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4,
				CsumType: expr.CsumTypeInet, CsumOffset: 10, CsumFlags: unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR,
			})
	case swarmlb.Dispatch:
		return lowerDispatch(e)
	case swarmlb.Source:
		return []expr.Any{
			&expr.Immediate{Register: 1, Data: e.Addr.AsSlice()},
			&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
		}
	case swarmlb.Reject:
		if e.Reset {
			return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
		}
		return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: icmpPortUnreachable}}
	}
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
}

// client loads the client's address and port and the server's port, of a datagram
// from the client or to it. Register 1 overlaps the 4-byte registers 8 to 11.
func client(from bool) []expr.Any {
	addr, its, ours := uint32(16), uint32(2), uint32(0)
	if from {
		addr, its, ours = 12, 0, 2
	}
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: addr, Len: 4},
		&expr.Payload{DestRegister: 9, Base: expr.PayloadBaseTransportHeader, Offset: its, Len: 2},
		&expr.Payload{DestRegister: 10, Base: expr.PayloadBaseTransportHeader, Offset: ours, Len: 2},
	}
}

// icmpPortUnreachable is ICMP_PORT_UNREACH of linux/icmp.h.
const icmpPortUnreachable = 3

func lowerDispatch(e swarmlb.Dispatch) []expr.Any {
	lookup := &expr.Lookup{SourceRegister: 1, IsDestRegSet: true, SetName: e.Map}
	if !e.Port {
		return []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}, lookup}
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Payload{DestRegister: 9, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		lookup,
	}
}
