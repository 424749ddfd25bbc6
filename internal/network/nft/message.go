// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"slices"
)

// Numbers of linux/netfilter/nfnetlink.h, nf_tables.h and netlink.h.
const (
	msgBatchBegin     = 0x10
	msgBatchEnd       = 0x11
	subsysNFTables    = 10
	msgDelSetElem     = 14
	msgDestroySetElem = 30

	flagRequest = 1
	flagAck     = 4

	attrNested = 0x8000

	attrElemListTable    = 1
	attrElemListSet      = 2
	attrElemListElements = 3
	attrListElem         = 1
	attrSetElemKey       = 1
	attrDataValue        = 1

	familyInet = 1
)

// maxBatch keeps a message's list of elements below the 64 KiB limit of a netlink
// attribute.
const maxBatch = 512

// DeleteBatches returns the messages for a NETLINK_NETFILTER socket that delete
// elements from the table. Each message is one transaction. With destroy (Linux
// 6.3 and later) a missing element is no error. Without it each element is a
// transaction of its own, so that a missing one (ENOENT) does not keep the others
// from being deleted.
//
// The sender must still hold the host ports: an element is identified by its
// port, so it could otherwise delete the element of the port's next owner.
func DeleteBatches(table string, elements []Element, destroy bool) [][]byte {
	var batches [][]byte
	if !destroy {
		for _, e := range elements {
			batches = append(batches, batch(deletion(msgDelSetElem, table, e.mapName(), []Element{e})))
		}
		return batches
	}
	byMap := map[string][]Element{}
	for _, e := range elements {
		byMap[e.mapName()] = append(byMap[e.mapName()], e)
	}
	var one []byte
	for _, m := range slices.Concat(publishMaps, directSets) {
		for es := byMap[m.Name]; len(es) > 0; {
			n := min(len(es), maxBatch)
			one = append(one, deletion(msgDestroySetElem, table, m.Name, es[:n])...)
			es = es[n:]
		}
	}
	if one != nil {
		batches = append(batches, batch(one))
	}
	return batches
}

func deletion(msg uint16, table, set string, elements []Element) []byte {
	var list []byte
	for _, e := range elements {
		key := attr(attrSetElemKey|attrNested, attr(attrDataValue, e.Key()))
		list = append(list, attr(attrListElem|attrNested, key)...)
	}
	body := nfgen(familyInet, 0)
	body = append(body, attr(attrElemListTable, zero(table))...)
	body = append(body, attr(attrElemListSet, zero(set))...)
	body = append(body, attr(attrElemListElements|attrNested, list)...)
	return message(subsysNFTables<<8|msg, flagRequest|flagAck, body)
}

func batch(messages []byte) []byte {
	b := message(msgBatchBegin, flagRequest, nfgen(0, subsysNFTables))
	b = append(b, messages...)
	return append(b, message(msgBatchEnd, flagRequest, nfgen(0, subsysNFTables))...)
}

// message returns a struct nlmsghdr and its body. The kernel sets the port.
func message(typ, flags uint16, body []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(16+len(body)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = append(b, make([]byte, 8)...)
	return pad(append(b, body...))
}

// nfgen returns a struct nfgenmsg. Its resource ID is big endian.
func nfgen(family byte, resource uint16) []byte {
	return []byte{family, 0, byte(resource >> 8), byte(resource)}
}

// attr returns a struct nlattr and its value.
func attr(typ uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	return pad(append(b, value...))
}

func zero(s string) []byte { return append([]byte(s), 0) }

func pad(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}
