// SPDX-License-Identifier: Apache-2.0

package dump

import (
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Nftables sends requests to nftables. The zero value is ready for use; the first
// request opens a connection in the current network namespace. It is not for
// concurrent use.
type Nftables struct{ conn *netlink.Conn }

// Close closes the connection.
func (n *Nftables) Close() error {
	if n.conn == nil {
		return nil
	}
	conn := n.conn
	n.conn = nil
	return conn.Close()
}

// Ruleset is Whole for a listing of nftables. The nftables library does not read
// the kernel's mark of an interrupted listing, so Ruleset compares the ruleset's
// generation before the listing with that after it.
func Ruleset[T any](n *Nftables, list func() ([]T, error)) ([]T, error) {
	return Whole(func() ([]T, error) {
		before, err := n.generation()
		if err != nil {
			return nil, err
		}
		all, err := list()
		if err != nil {
			return nil, err
		}
		after, err := n.generation()
		if err == nil && after != before {
			err = ErrInterrupted
		}
		return all, err
	})
}

// nfgenmsgSize is the size of struct nfgenmsg of linux/netfilter/nfnetlink.h, in
// bytes. Each message of netfilter starts with it.
const nfgenmsgSize = 4

// generation returns the number that the kernel gives to the ruleset after each
// transaction, as bytes.
func (n *Nftables) generation() (string, error) {
	answers, err := n.Ask(unix.NFT_MSG_GETGEN, unix.NFPROTO_UNSPEC, 0, nil)
	if err != nil {
		return "", fmt.Errorf("nftables: read the generation: %w", err)
	}
	for _, m := range answers {
		if len(m.Data) < nfgenmsgSize {
			continue
		}
		attrs, err := netlink.UnmarshalAttributes(m.Data[nfgenmsgSize:])
		if err != nil {
			return "", fmt.Errorf("nftables: read the generation: %w", err)
		}
		for _, a := range attrs {
			if a.Type == unix.NFTA_GEN_ID {
				return string(a.Data), nil
			}
		}
	}
	return "", errors.New("nftables: the kernel's answer has no generation")
}

// Ask sends one request, such as NFT_MSG_GETRULE, and returns the answers. After an
// error, the connection may still have answers in its socket, so Ask closes it.
func (n *Nftables) Ask(kind int, family byte, flags netlink.HeaderFlags, attrs []netlink.Attribute) ([]netlink.Message, error) {
	if n.conn == nil {
		conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			return nil, err
		}
		n.conn = conn
	}
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return nil, err
	}
	answers, err := n.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | flags},
		Data:   append([]byte{family, 0, 0, 0}, data...),
	})
	if err != nil {
		_ = n.Close()
	}
	return answers, err
}
