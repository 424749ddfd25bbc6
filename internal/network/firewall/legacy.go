// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"holdfast/internal/network/nft"
)

// Legacy is x_tables, the backend of iptables-legacy. It is read by the socket
// options of linux/netfilter_ipv4/ip_tables.h, and only if the filter table
// exists, because reading it would create it. It is changed by
// iptables-legacy-restore, which is only started if something differs.
type Legacy struct {
	// Restore runs the program with text as its standard input. Tests set it. Nil
	// runs the host's own program.
	Restore func(v6 bool, text string) error
}

// errNoProgram means that the host has no iptables-legacy-restore.
var errNoProgram = errors.New("iptables-legacy-restore is not installed")

// Admit does for the legacy tables what Table.Admit does for nftables. Its chain
// has the name of the engine's table.
func (l Legacy) Admit(name string, a Admission) (did Admitted, err error) {
	var errs []error
	for _, v6 := range []bool{false, true} {
		bridges, chain := a.IPv4, "legacy ip filter FORWARD"
		if v6 {
			bridges, chain = a.IPv6, "legacy ip6 filter FORWARD"
		}
		var rest *nft.Rest
		if a.closes(v6, InLegacy) {
			rest = &a.Rest
		}
		text, needed, err := legacyPlan(name, bridges, rest, v6)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", chain, err))
			continue
		}
		if text == "" {
			continue
		}
		restore := l.Restore
		if restore == nil {
			restore = legacyRestore
		}
		switch err := restore(v6, text); {
		case errors.Is(err, errNoProgram) && rest != nil:
			// Our own table goes on dropping it.
			errs = append(errs, fmt.Errorf("%s: what none of its rules accepts can't be dropped there: %w", chain, err))
		case errors.Is(err, errNoProgram) && needed:
			did.Refusing = append(did.Refusing, fmt.Sprintf("%s: %v; it needs the rules -i BRIDGE -j ACCEPT and -o BRIDGE -j ACCEPT for %s", chain, err, strings.Join(bridges, ", ")))
		case err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", chain, err))
		case needed && rest != nil:
			did.Closed = append(did.Closed, chain)
		case needed:
			did.Accepted = append(did.Accepted, chain)
		default:
			did.Withdrawn = append(did.Withdrawn, chain)
		}
	}
	return did, errors.Join(errs...)
}

// legacyPlan returns the input for iptables-restore, or "" if nothing has to be
// changed. If rest is not nil, packets that no rule decided are dropped, except
// for what rest allows.
func legacyPlan(name string, bridges []string, rest *nft.Rest, v6 bool) (text string, needed bool, err error) {
	table, err := readLegacy(v6)
	if err != nil || table == nil {
		return "", false, err
	}
	p := nft.Place(table.forward, table.policyDrops || rest != nil, name, func(chain string) []nft.Foreign { return table.chains[chain] })
	if len(bridges) == 0 && rest == nil {
		p.Needed, p.Right = false, len(p.Ours) == 0
	}
	_, there := table.chains[name]
	// As in the chain for nftables.
	var want []string
	for _, b := range bridges {
		want = append(want, "-o "+b+" -j ACCEPT")
	}
	apart := " -j RETURN"
	if rest != nil {
		apart = " -j DROP"
	}
	for _, b := range nft.Apart(table.forward) {
		want = append(want, "-o "+b+apart)
	}
	for _, b := range bridges {
		want = append(want, "-i "+b+" -j ACCEPT")
	}
	if rest != nil {
		want = append(want, legacyRest(*rest, v6)...)
	}
	if p.Right && there == p.Needed && (!there || slices.Equal(table.texts[name], want)) {
		return "", p.Needed, nil
	}
	var b strings.Builder
	b.WriteString("*filter\n")
	if p.Needed {
		fmt.Fprintf(&b, ":%s - [0:0]\n", name) // creates the chain, or empties it
		for _, w := range want {
			fmt.Fprintf(&b, "-A %s %s\n", name, w)
		}
	}
	if !p.Right {
		before := 0
		for _, i := range p.Ours {
			fmt.Fprintf(&b, "-D FORWARD -j %s\n", name)
			if i < p.Before {
				before++
			}
		}
		if p.Needed {
			fmt.Fprintf(&b, "-I FORWARD %d -j %s\n", p.Before-before+1, name)
		}
	}
	if !p.Needed && there {
		fmt.Fprintf(&b, "-F %s\n-X %s\n", name, name)
	}
	b.WriteString("COMMIT\n")
	return b.String(), p.Needed, nil
}

// legacyRest is like nft.Closing, except for the bridges of other engines on this
// host: x_tables can only match groups of interfaces with an extra module. Those
// engines have calls of their own before this one.
func legacyRest(rest nft.Rest, v6 bool) []string {
	family := 0
	if v6 {
		family = 1
	}
	want := []string{legacyKnown}
	for _, name := range rest.Within {
		want = append(want, "-i "+name+" -o "+name+" -j ACCEPT")
	}
	for _, name := range rest.Pass {
		want = append(want, "-i "+name+" -j ACCEPT", "-o "+name+" -j ACCEPT")
	}
	for _, name := range rest.Before[family] {
		want = append(want, "-i "+name+" -j ACCEPT")
	}
	return append(want, "-j DROP")
}

const legacyKnown = "-m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT"

// legacyRestore runs the program, which applies text in one transaction.
func legacyRestore(v6 bool, text string) error {
	program, err := legacyProgram(v6)
	if err != nil {
		return err
	}
	// The program waits for the xtables lock, and its holder may be waiting for a
	// user.
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "--noflush", "--wait", "10")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(out))
	}
	return nil
}

// legacyProgram finds the program. The plain name may be the nftables variant.
func legacyProgram(v6 bool) (string, error) {
	name := "iptables"
	if v6 {
		name = "ip6tables"
	}
	for _, dir := range []string{"", "/usr/sbin/", "/sbin/"} {
		if path, err := exec.LookPath(dir + name + "-legacy-restore"); err == nil {
			return path, nil
		}
		if path, err := exec.LookPath(dir + name + "-restore"); err == nil {
			if out, err := exec.Command(path, "--version").Output(); err == nil && !bytes.Contains(out, []byte("nf_tables")) {
				return path, nil
			}
		}
	}
	return "", errNoProgram
}

// legacyTable is a filter table of x_tables.
type legacyTable struct {
	policyDrops bool
	forward     []nft.Foreign
	chains      map[string][]nft.Foreign
	// texts are the rules of each chain in the form "-i eth0 -j ACCEPT". Only some
	// rules have a text: those that accept, drop or return by interface name alone,
	// one that drops everything, and those with the match legacyKnown. For other
	// rules it is empty.
	texts map[string][]string
}

// legacyForm has the layout of a family's structures.
type legacyForm struct {
	names         string // file that lists the existing tables
	family, level int
	in, out       int // offsets of interface names in struct ipt_ip; the masks come 32 bytes later
	flags, gotoF  int // offset of the flags, and the flag that makes the target a goto and not a call
	ip, head      int // sizes of struct ipt_ip and struct ipt_entry
	offsets       int // offset of target_offset and next_offset in struct ipt_entry
}

var legacyForms = map[bool]legacyForm{
	false: {"/proc/net/ip_tables_names", unix.AF_INET, unix.IPPROTO_IP, 16, 32, 82, 2, 84, 112, 88},
	true:  {"/proc/net/ip6_tables_names", unix.AF_INET6, unix.IPPROTO_IPV6, 64, 80, 131, 4, 136, 168, 140},
}

// readLegacy reads the filter table. It returns nil if there is none.
func readLegacy(v6 bool) (*legacyTable, error) {
	form := legacyForms[v6]
	names, err := os.ReadFile(form.names)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !slices.Contains(strings.Fields(string(names)), "filter") {
		return nil, nil
	}
	fd, err := unix.Socket(form.family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	const getInfo, getEntries = 64, 65
	for try := 0; ; try++ {
		// struct ipt_getinfo: name, valid hooks, five starts and five policies
		// of hooks, count, size.
		info := make([]byte, 84)
		copy(info, "filter")
		if err := sockopt(fd, form.level, getInfo, info); err != nil {
			return nil, err
		}
		// struct ipt_get_entries: name, size, entries.
		const header = 40
		size := binary.NativeEndian.Uint32(info[80:])
		entries := make([]byte, header+int(size))
		copy(entries, "filter")
		binary.NativeEndian.PutUint32(entries[32:], size)
		err := sockopt(fd, form.level, getEntries, entries)
		if errors.Is(err, unix.EAGAIN) && try < 10 {
			continue // the table changed in between
		}
		if err != nil {
			return nil, err
		}
		const forward = 2 // NF_INET_FORWARD
		start, policy := binary.NativeEndian.Uint32(info[36+4*forward:]), binary.NativeEndian.Uint32(info[56+4*forward:])
		return parseLegacy(entries[header:], form, int(start), int(policy))
	}
}

func sockopt(fd, level, name int, b []byte) error {
	n := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return os.NewSyscallError("getsockopt", errno)
	}
	return nil
}

// legacyRule is an entry of the table.
type legacyRule struct {
	at   int
	head string // name of the chain that begins here; no other field is set
	deed nft.Deed
	jump int    // offset of the chain that it calls; 0 means none
	out  string // outgoing interface, if the rule is for all packets that leave by it
	text string // see legacyTable
}

// parseLegacy parses the entries: first the chains of hooks, each with its policy
// as its last rule, then the users' chains, each beginning with its name and
// ending with a return.
func parseLegacy(b []byte, form legacyForm, forward, policy int) (*legacyTable, error) {
	var rules []legacyRule
	names := map[int]string{} // of chains, by the offset of their first rule
	for at := 0; at < len(b); {
		r, next, err := parseLegacyRule(b[at:], form)
		if err != nil {
			return nil, err
		}
		r.at = at
		at += next
		if r.head != "" {
			names[at] = r.head
		}
		rules = append(rules, r)
	}
	t := &legacyTable{chains: map[string][]nft.Foreign{}, texts: map[string][]string{}}
	chain, in := "", false // name of the user's chain, and whether the entry is in FORWARD
	for i, r := range rules {
		if r.head != "" {
			chain = r.head
			if chain != "ERROR" { // the end of the table
				t.chains[chain], t.texts[chain] = nil, nil
			}
			continue
		}
		if r.at == forward {
			in = true
		}
		foreign := nft.Foreign{Deed: r.deed}
		if r.jump > 0 {
			foreign.Chain, foreign.Out = names[r.jump], r.out
		}
		switch {
		case r.at == policy:
			t.policyDrops, in = r.deed == nft.Refuses, false
		case in:
			t.forward = append(t.forward, foreign)
		case chain != "" && i+1 < len(rules) && rules[i+1].head == "":
			t.chains[chain] = append(t.chains[chain], foreign)
			t.texts[chain] = append(t.texts[chain], r.text)
		}
	}
	return t, nil
}

func parseLegacyRule(b []byte, form legacyForm) (r legacyRule, next int, err error) {
	short := errors.New("x_tables: an entry that is too short")
	if len(b) < form.head {
		return r, 0, short
	}
	target := int(binary.NativeEndian.Uint16(b[form.offsets:]))
	next = int(binary.NativeEndian.Uint16(b[form.offsets+2:]))
	const targetHead = 32 // struct xt_entry_target: size, name, revision
	if target < form.head || target+targetHead > next || next > len(b) {
		return r, 0, short
	}
	ip := slices.Clone(b[:form.ip])
	ip[form.flags] &^= byte(form.gotoF)
	conditional := slices.ContainsFunc(ip, func(c byte) bool { return c != 0 })
	matched, known := false, false
	for at := form.head; at < target; {
		if at+targetHead > target {
			return r, 0, short
		}
		size := int(binary.NativeEndian.Uint16(b[at:]))
		if size < targetHead || at+size > target {
			return r, 0, short
		}
		match := unix.ByteSliceToString(b[at+2 : at+31])
		known = !matched && match == "conntrack"
		matched = matched || match != "comment"
		at += size
	}
	switch name := unix.ByteSliceToString(b[target+2 : target+31]); name {
	case "":
		if target+targetHead+4 > next {
			return r, 0, short
		}
		verdict := int32(binary.NativeEndian.Uint32(b[target+targetHead:]))
		switch verdict {
		case -1:
			r.deed = nft.Refuses
		case -2:
			r.deed = nft.Accepts
		case -5:
			r.deed = nft.Returns
		default:
			if verdict > 0 {
				r.deed, r.jump = nft.Calls, int(verdict)
			}
		}
	case "ERROR":
		r.head = unix.ByteSliceToString(b[target+targetHead : next])
		return r, next, nil
	case "REJECT":
		r.deed = nft.Refuses
	case "LOG", "NFLOG", "ULOG":
		r.deed = nft.Logs
		return r, next, nil
	}
	plainDrop := r.deed == nft.Refuses && unix.ByteSliceToString(b[target+2:target+31]) == ""
	if !conditional && !matched {
		if plainDrop {
			r.text = "-j DROP"
		}
		return r, next, nil
	}
	deed, jump := r.deed, r.jump
	r.deed, r.jump = nft.Other, 0
	switch words, out := asksFor(ip, form); {
	case known && !conditional && deed == nft.Accepts:
		r.text = legacyKnown
	case words == "" || matched:
	case deed == nft.Accepts:
		r.text = words + " -j ACCEPT"
	case deed == nft.Returns:
		r.text = words + " -j RETURN"
	case plainDrop:
		r.text = words + " -j DROP"
	case deed == nft.Calls && words == "-o "+out:
		r.jump, r.out = jump, out
	}
	return r, next, nil
}

// asksFor returns the interfaces that struct ipt_ip matches, as iptables options,
// and the outgoing one. words is empty if it matches anything else.
func asksFor(ip []byte, form legacyForm) (words, out string) {
	rest := slices.Clone(ip)
	for _, side := range []struct {
		option string
		at     int
	}{{"-i", form.in}, {"-o", form.out}} {
		name := unix.ByteSliceToString(ip[side.at : side.at+unix.IFNAMSIZ])
		mask := ip[side.at+32 : side.at+32+unix.IFNAMSIZ]
		exact := make([]byte, unix.IFNAMSIZ)
		for i := range min(len(name)+1, len(exact)) {
			exact[i] = 0xff
		}
		if name == "" || !bytes.Equal(mask, exact) {
			continue
		}
		clear(rest[side.at : side.at+unix.IFNAMSIZ])
		clear(rest[side.at+32 : side.at+32+unix.IFNAMSIZ])
		if words != "" {
			words += " "
		}
		words += side.option + " " + name
		if side.option == "-o" {
			out = name
		}
	}
	if slices.ContainsFunc(rest, func(c byte) bool { return c != 0 }) {
		return "", ""
	}
	return words, out
}
