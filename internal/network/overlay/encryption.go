// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
)

// The tunnels of encrypted networks are protected by IPsec (RFC 4303) in transport mode, as
// Docker does it, so that its hosts and ours understand each other. What the kernel would get is
// computed here. No release applies it yet, so that networks that ask for it are refused.

// EncryptionMark marks the packets that are to be encrypted, and is the request ID of our
// security associations. It is Docker's.
const EncryptionMark = 0xD0C4E3

// EncryptionAlgorithm is the name of the cipher in the kernel: AES in Galois/counter mode
// (RFC 4106), with a check value of 64 bits.
const (
	EncryptionAlgorithm = "rfc4106(gcm(aes))"
	encryptionCheckBits = 64
)

// Key is a key of the cluster. Its managers replace the oldest one every twelve hours.
type Key struct {
	Tag   uint32 // Lamport time of its making
	Value []byte
}

// Association is a security association: how packets of one direction are encrypted.
type Association struct {
	Src, Dst netip.Addr
	SPI      uint32 // its number at the receiver
	Key      []byte // that of the cluster, and four bytes of salt
}

// Policy says that packets to the tunnel of a host are sent with an association.
type Policy struct {
	Src, Dst netip.Addr
	Port     uint16 // UDP, of the tunnels
	SPI      uint32
}

// Encryption is what the kernel has to know of other hosts, sorted.
type Encryption struct {
	Associations []Association
	Policies     []Policy
}

// spiOf is the number of the association from one host to another. Both compute it.
func spiOf(src, dst netip.Addr, tag uint32) uint32 {
	h := fnv.New32a()
	from, to := src.As16(), dst.As16()
	_, _ = h.Write(from[:]) // a hash takes everything
	_, _ = h.Write(binary.BigEndian.AppendUint32(nil, tag))
	_, _ = h.Write(to[:])
	return h.Sum32()
}

func associate(src, dst netip.Addr, k Key) Association {
	spi := spiOf(src, dst, k.Tag)
	return Association{src, dst, spi, binary.BigEndian.AppendUint32(slices.Clone(k.Value), spi)}
}

// PlanEncryption returns what a host needs to exchange encrypted packets with others. keys
// are all that the cluster has now. Packets are sent with the second oldest one: the newest may
// not have reached each host, and the oldest is about to be removed. All are accepted.
func PlanEncryption(local netip.Addr, hosts []netip.Addr, keys []Key, port uint16) (e Encryption) {
	keys = slices.SortedFunc(slices.Values(keys), func(a, b Key) int { return cmp.Compare(a.Tag, b.Tag) })
	if len(keys) == 0 {
		return e
	}
	primary := keys[min(1, len(keys)-1)]
	hosts = slices.SortedFunc(slices.Values(hosts), netip.Addr.Compare)
	for _, host := range slices.Compact(hosts) {
		if host == local || !host.IsValid() {
			continue
		}
		for _, k := range keys {
			e.Associations = append(e.Associations, associate(host, local, k))
		}
		out := associate(local, host, primary)
		e.Associations = append(e.Associations, out)
		e.Policies = append(e.Policies, Policy{local, host, cmp.Or(port, DefaultPort), out.SPI})
	}
	return e
}

// EncryptionSteps are what makes one state into another, in the order in which it has to be
// done: what is sent at any moment can be encrypted, and what arrives can be decrypted.
type EncryptionSteps struct {
	Add    []Association
	Set    []Policy // to add, or in place of the one to the same host
	Unset  []Policy
	Remove []Association
}

// CompareEncryption returns how to get from what the kernel has to what is wanted.
func CompareEncryption(want, have Encryption) (s EncryptionSteps) {
	same := func(a Association) func(Association) bool {
		return func(b Association) bool {
			return a.Src == b.Src && a.Dst == b.Dst && a.SPI == b.SPI && slices.Equal(a.Key, b.Key)
		}
	}
	for _, a := range want.Associations {
		if !slices.ContainsFunc(have.Associations, same(a)) {
			s.Add = append(s.Add, a)
		}
	}
	for _, p := range want.Policies {
		if !slices.Contains(have.Policies, p) {
			s.Set = append(s.Set, p)
		}
	}
	for _, p := range have.Policies {
		if !slices.ContainsFunc(want.Policies, func(w Policy) bool { return w.Src == p.Src && w.Dst == p.Dst && w.Port == p.Port }) {
			s.Unset = append(s.Unset, p)
		}
	}
	for _, a := range have.Associations {
		if !slices.ContainsFunc(want.Associations, same(a)) {
			s.Remove = append(s.Remove, a)
		}
	}
	return s
}

// RenderEncryptionRules returns the ruleset in the language of nft that goes with the policies:
// it marks what is sent on the segments, and drops what arrives on them in plain text.
func RenderEncryptionRules(port uint16, vnis []uint32) string {
	var mark, drop strings.Builder
	for _, vni := range slices.Compact(slices.Sorted(slices.Values(vnis))) {
		// The number of the segment is behind eight bytes of UDP and four of VXLAN.
		match := fmt.Sprintf("\t\tudp dport %d @th,96,24 %#x ", cmp.Or(port, DefaultPort), vni)
		fmt.Fprintf(&mark, "%smeta mark set %#x\n", match, EncryptionMark)
		fmt.Fprintf(&drop, "%smeta ipsec missing drop\n", match)
	}
	return "table ip holdfast-encryption {\n" +
		"\tchain output {\n\t\ttype route hook output priority mangle; policy accept;\n" + mark.String() + "\t}\n" +
		"\tchain input {\n\t\ttype filter hook input priority filter - 1; policy accept;\n" + drop.String() + "\t}\n}\n"
}

// String is the association in the language of ip xfrm state.
func (a Association) String() string {
	return fmt.Sprintf("src %s dst %s proto esp spi %#08x reqid %d mode transport aead %s %#x %d", a.Src, a.Dst, a.SPI, EncryptionMark, EncryptionAlgorithm, a.Key, encryptionCheckBits)
}

// String is the policy in the language of ip xfrm policy.
func (p Policy) String() string {
	return fmt.Sprintf("src %s dst %s proto udp dport %d dir out mark %#x tmpl src %s dst %s proto esp spi %#08x reqid %d mode transport",
		netip.PrefixFrom(p.Src, p.Src.BitLen()), netip.PrefixFrom(p.Dst, p.Dst.BitLen()), p.Port, EncryptionMark, p.Src, p.Dst, p.SPI, EncryptionMark)
}
