// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/network/dump"
	"holdfast/internal/network/nft"
)

// Admission is what other programs' packet filters shall accept: forwarded
// packets from and to these bridges, by family.
type Admission struct {
	IPv4, IPv6 []string
	// Close names, by family, the FORWARD chain at whose end packets are dropped
	// that no rule decided, except for what Rest allows.
	Close [2]Where
	Rest  nft.Rest
}

// Bridges returns the bridges of both families, sorted.
func (a Admission) Bridges() []string {
	return slices.Compact(slices.Sorted(slices.Values(slices.Concat(a.IPv4, a.IPv6))))
}

// Admitted reports what Admit did. The strings name chains, as "family table
// chain", or tables.
type Admitted struct {
	// Accepted are chains that now accept the bridges' packets. Withdrawn are
	// tables that no longer need our chain, which was removed.
	Accepted, Withdrawn []string
	// Closed are chains at whose end the rest is now dropped.
	Closed []string
	// Refusing are chains that go on dropping the bridges' packets, each with the
	// reason.
	Refusing []string
}

func (a *Admitted) add(b Admitted) {
	a.Accepted = append(a.Accepted, b.Accepted...)
	a.Withdrawn = append(a.Withdrawn, b.Withdrawn...)
	a.Closed = append(a.Closed, b.Closed...)
	a.Refusing = append(a.Refusing, b.Refusing...)
}

var families = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
}

// filter is another program's table that has forward hooks or a chain of ours.
type filter struct {
	*nftables.Table
	bases []*nftables.Chain
	ours  bool
}

func (f *filter) key() string { return families[f.Family] + " " + f.Name }

// Admit changes the chains of other programs' nftables tables that would by
// default drop what the admission names, so that they accept it. It also removes
// what is no longer needed. It adds a chain with the name of the engine's table
// to such a table, and one rule that calls it. It changes nothing else, and sends
// nothing if nothing differs. For x_tables see Legacy.
func (t *Table) Admit(a Admission) (Admitted, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	filters, err := t.filters()
	if err != nil {
		return Admitted{}, err
	}
	hooked := map[string]bool{}
	for key, f := range filters {
		hooked[key] = len(f.bases) > 0
	}
	t.hooked.Store(&hooked)
	var did Admitted
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(filters)) {
		// The transaction fails if the other program changed the table meanwhile:
		// retry.
		for try := 0; ; try++ {
			one, err := t.admit(filters[key], a)
			if err == nil {
				did.add(one)
				break
			}
			if try == 2 {
				errs = append(errs, err)
				break
			}
		}
	}
	return did, errors.Join(errs...)
}

// filters returns the tables that matter, by key. firewalld's table is not among
// them: it learns of our bridges by D-Bus, and only firewalld itself changes its
// rules.
func (t *Table) filters() (map[string]*filter, error) {
	chains, err := dump.Ruleset(&t.rules, t.conn.ListChains)
	if err != nil {
		return nil, fmt.Errorf("nftables: list chains: %w", err)
	}
	out := map[string]*filter{}
	for _, c := range chains {
		base := c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Type == nftables.ChainTypeFilter
		if families[c.Table.Family] == "" || ourKind(c.Table.Name) || strings.HasPrefix(c.Table.Name, "firewalld") || !base && c.Name != t.name {
			continue
		}
		f := &filter{Table: c.Table}
		if known := out[f.key()]; known != nil {
			f = known
		} else {
			out[f.key()] = f
		}
		if base {
			f.bases = append(f.bases, c)
		} else {
			f.ours = true
		}
	}
	return out, nil
}

// admit changes one table.
func (t *Table) admit(f *filter, a Admission) (did Admitted, err error) {
	rules := &reader{table: t, filter: f}
	type edit struct {
		base *nftables.Chain
		nft.Placing
		handles []uint64
	}
	var edits []edit
	needed, right, closing := false, true, false
	var apart []string
	for _, c := range f.bases {
		chain, err := rules.read(c.Name)
		if err != nil {
			return did, err
		}
		drops := c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
		if !drops && inFilter(c) && a.closes(f.Family == nftables.TableFamilyIPv6, InTables) {
			drops, closing = true, true
		}
		p := nft.Place(chain.rules, drops, t.name, rules.of)
		if rules.err != nil {
			return did, rules.err
		}
		if a.none(f.Family) && !closing {
			p.Needed, p.Right = false, len(p.Ours) == 0
		}
		apart = append(apart, nft.Apart(chain.rules)...)
		needed, right = needed || p.Needed, right && p.Right
		edits = append(edits, edit{c, p, chain.handles})
	}
	want := a.chain(t.name, f.Family, apart)
	if closing {
		want = nft.Closing(want, a.Rest, f.Family == nftables.TableFamilyIPv6)
	}
	if needed == f.ours && right && needed {
		if right, err = t.sameChain(f.Table, want); err != nil {
			return did, err
		}
	}
	if needed == f.ours && right {
		return did, nil
	}

	ours := &nftables.Chain{Name: t.name, Table: f.Table}
	if needed {
		t.conn.AddChain(ours)
		t.conn.FlushChain(ours)
		t.queueRules(f.Table, want)
	}
	for _, e := range edits {
		if !e.Right {
			for _, i := range e.Ours {
				if err := t.conn.DelRule(&nftables.Rule{Table: f.Table, Chain: e.base, Handle: e.handles[i]}); err != nil {
					return did, err
				}
			}
			if e.Needed {
				// Insert before the first rule from there on that is not deleted.
				at := e.Before
				for slices.Contains(e.Ours, at) {
					at++
				}
				call := &nftables.Rule{Table: f.Table, Chain: e.base, Exprs: lower(nft.Rule{nft.Counter{}, nft.Verdict{Kind: "jump", Chain: t.name}})}
				if at < len(e.handles) {
					call.Position = e.handles[at]
					t.conn.InsertRule(call)
				} else {
					t.conn.AddRule(call)
				}
			}
		}
		switch {
		case e.Needed && closing:
			did.Closed = append(did.Closed, f.key()+" "+e.base.Name)
		case e.Needed:
			did.Accepted = append(did.Accepted, f.key()+" "+e.base.Name)
		}
	}
	if !needed && f.ours {
		t.conn.DelChain(ours)
		did.Withdrawn = append(did.Withdrawn, f.key())
	}
	switch err := t.flush("accept forwarded packets in " + f.key()); {
	case errors.Is(err, unix.EPERM): // the table has flag owner of nft(8)
		return Admitted{Refusing: []string{"nft " + f.key() + ": its owner does not let other programs change it"}}, nil
	case err != nil:
		return Admitted{}, err
	}
	f.ours = needed
	return did, nil
}

// none reports whether a table of this family needs no chain of ours.
func (a Admission) none(family nftables.TableFamily) bool {
	return (family == nftables.TableFamilyIPv6 || len(a.IPv4) == 0) && (family == nftables.TableFamilyIPv4 || len(a.IPv6) == 0)
}

// chain returns the chain that a table of this family gets.
func (a Admission) chain(name string, family nftables.TableFamily, apart []string) nft.Chain {
	switch family {
	case nftables.TableFamilyIPv4:
		return nft.Admission(name, a.IPv4, apart)
	case nftables.TableFamilyIPv6:
		return nft.Admission(name, a.IPv6, apart)
	}
	var both, only4, only6 []string
	for _, b := range a.IPv4 {
		if slices.Contains(a.IPv6, b) {
			both = append(both, b)
		} else {
			only4 = append(only4, b)
		}
	}
	for _, b := range a.IPv6 {
		if !slices.Contains(both, b) {
			only6 = append(only6, b)
		}
	}
	c := nft.Admission(name, both, apart)
	c.Rules = append(c.Rules, nft.Admission(name, only4, apart, nft.Family{}).Rules...)
	c.Rules = append(c.Rules, nft.Admission(name, only6, apart, nft.Family{V6: true}).Rules...)
	return c
}

// foreignChain is another program's chain.
type foreignChain struct {
	rules   []nft.Foreign
	handles []uint64
}

// reader reads the chains of a table, each once and only when it is needed. It
// parses the kernel's messages itself, because no expression of a rule may be
// missed: a rule with an expression that is not understood counts as conditional.
type reader struct {
	*filter
	table *Table
	known map[string]*foreignChain
	err   error // the first error of of
}

func (r *reader) of(chain string) []nft.Foreign {
	c, err := r.read(chain)
	if err != nil {
		if r.err == nil {
			r.err = err
		}
		return nil
	}
	return c.rules
}

func (r *reader) read(chain string) (*foreignChain, error) {
	if c := r.known[chain]; c != nil {
		return c, nil
	}
	answers, err := dump.Ruleset(&r.table.rules, func() ([]netlink.Message, error) {
		return r.table.rules.Ask(unix.NFT_MSG_GETRULE, byte(r.Family), netlink.Dump, []netlink.Attribute{
			{Type: unix.NFTA_RULE_TABLE, Data: append([]byte(r.Name), 0)},
			{Type: unix.NFTA_RULE_CHAIN, Data: append([]byte(chain), 0)},
		})
	})
	if err != nil {
		return nil, fmt.Errorf("nftables table %s: list chain %s: %w", r.Name, chain, err)
	}
	c := &foreignChain{}
	for _, m := range answers {
		handle, rule, err := foreignRule(m.Data)
		if err != nil {
			return nil, fmt.Errorf("nftables table %s: chain %s: %w", r.Name, chain, err)
		}
		c.handles, c.rules = append(c.handles, handle), append(c.rules, rule)
	}
	if r.known == nil {
		r.known = map[string]*foreignChain{}
	}
	r.known[chain] = c
	return c, nil
}

// foreignRule parses struct nfgenmsg and the attributes of a rule
// (linux/netfilter/nf_tables.h).
func foreignRule(b []byte) (handle uint64, rule nft.Foreign, err error) {
	if len(b) < 4 {
		return 0, rule, errors.New("a rule without a header")
	}
	ad, err := netlink.NewAttributeDecoder(b[4:])
	if err != nil {
		return 0, rule, err
	}
	ad.ByteOrder = binary.BigEndian
	var out, other bool // it has a condition on the outgoing interface, or any other
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_RULE_HANDLE:
			handle = ad.Uint64()
		case unix.NFTA_RULE_EXPRESSIONS:
			ad.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					list.Nested(func(ad *netlink.AttributeDecoder) error {
						e := foreignExpr(ad)
						switch {
						case e.outName && !out && !other:
							out = true
						case e.equals != "" && out && rule.Out == "":
							rule.Out = e.equals
						case !e.known:
							other = true
						case e.Deed != nft.Other && (e.Deed != nft.Logs || rule.Deed == nft.Other):
							rule.Deed, rule.Chain = e.Deed, e.Chain
						}
						return nil
					})
				}
				return nil
			})
		}
	}
	switch {
	case rule.Deed == nft.Logs:
		rule = nft.Foreign{Deed: nft.Logs}
	case other, out && (rule.Deed != nft.Calls || rule.Out == ""):
		rule = nft.Foreign{}
	case out:
		rule.Deed = nft.Other
	}
	return handle, rule, ad.Err()
}

// expression is a parsed expression of a rule.
type expression struct {
	nft.Foreign
	known   bool   // it is no condition, and has no other effect than Foreign says
	outName bool   // it loads the name of the outgoing interface
	equals  string // it compares the loaded value with this whole name
}

func foreignExpr(ad *netlink.AttributeDecoder) (e expression) {
	var name string
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_EXPR_NAME:
			name = ad.String()
		case unix.NFTA_EXPR_DATA:
			ad.Nested(func(data *netlink.AttributeDecoder) error {
				switch name {
				case "immediate":
					e.Foreign, e.known = foreignVerdict(data)
				case "match", "target":
					const nameOf = 1 // NFTA_MATCH_NAME, NFTA_TARGET_NAME
					for data.Next() {
						if data.Type() == nameOf {
							e.Foreign, e.known = xtables(name == "target", data.String())
						}
					}
				case "meta":
					for data.Next() {
						e.outName = e.outName || data.Type() == unix.NFTA_META_KEY && data.Uint32() == unix.NFT_META_OIFNAME
					}
				case "cmp":
					e.equals = equalName(data)
				}
				return nil
			})
		}
	}
	switch name {
	case "counter":
		e.known = true
	case "log":
		e.Deed, e.known = nft.Logs, true
	case "reject":
		e.Deed, e.known = nft.Refuses, true
	}
	return e
}

// equalName returns the name that a comparison requires, if it compares the whole
// name.
func equalName(ad *netlink.AttributeDecoder) (name string) {
	equal := false
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_CMP_OP:
			equal = ad.Uint32() == unix.NFT_CMP_EQ
		case unix.NFTA_CMP_DATA:
			ad.Nested(func(data *netlink.AttributeDecoder) error {
				for data.Next() {
					if b := data.Bytes(); data.Type() == unix.NFTA_DATA_VALUE && bytes.HasSuffix(b, []byte{0}) {
						name = unix.ByteSliceToString(b)
					}
				}
				return nil
			})
		}
	}
	if !equal {
		return ""
	}
	return name
}

func foreignVerdict(ad *netlink.AttributeDecoder) (rule nft.Foreign, known bool) {
	for ad.Next() {
		if ad.Type() != unix.NFTA_IMMEDIATE_DATA {
			continue
		}
		ad.Nested(func(data *netlink.AttributeDecoder) error {
			for data.Next() {
				if data.Type() != unix.NFTA_DATA_VERDICT {
					continue
				}
				data.Nested(func(v *netlink.AttributeDecoder) error {
					for v.Next() {
						switch v.Type() {
						case unix.NFTA_VERDICT_CODE:
							rule.Deed, known = map[int32]nft.Deed{
								int32(expr.VerdictDrop): nft.Refuses, int32(expr.VerdictAccept): nft.Accepts,
								int32(expr.VerdictReturn): nft.Returns,
								int32(expr.VerdictJump):   nft.Calls, int32(expr.VerdictGoto): nft.Calls,
							}[int32(v.Uint32())], true
						case unix.NFTA_VERDICT_CHAIN:
							rule.Chain = v.String()
						}
					}
					return nil
				})
			}
			return nil
		})
	}
	return rule, known && rule.Deed != nft.Other
}

// xtables classifies a match or a target of x_tables by its name.
func xtables(target bool, name string) (rule nft.Foreign, known bool) {
	if !target {
		return rule, name == "comment"
	}
	switch name {
	case "REJECT":
		rule.Deed = nft.Refuses
	case "LOG", "NFLOG", "ULOG":
		rule.Deed = nft.Logs
	}
	return rule, rule.Deed != nft.Other
}

// sameChain compares a chain's rules by the fingerprints that they were stored
// with.
func (t *Table) sameChain(table *nftables.Table, c nft.Chain) (bool, error) {
	rules, err := dump.Ruleset(&t.rules, func() ([]*nftables.Rule, error) {
		return t.conn.GetRules(table, &nftables.Chain{Name: c.Name, Table: table})
	})
	if err != nil {
		return false, fmt.Errorf("nftables table %s: list rules: %w", table.Name, err)
	}
	if len(rules) != len(c.Rules) {
		return false, nil
	}
	for i, r := range c.Rules {
		if !bytes.Equal(rules[i].UserData, userData(r)) {
			return false, nil
		}
	}
	return true, nil
}

func userData(r nft.Rule) []byte {
	f := r.Fingerprint()
	return append([]byte{fingerprintType, byte(len(f))}, f[:]...)
}

func (t *Table) queueRules(table *nftables.Table, c nft.Chain) {
	for _, r := range c.Rules {
		t.conn.AddRule(&nftables.Rule{
			Table: table, Chain: &nftables.Chain{Name: c.Name, Table: table},
			Exprs:    lower(r),
			UserData: userData(r),
		})
	}
}
