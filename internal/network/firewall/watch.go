// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Watch calls changed when a program, this one included, changed the tables,
// chains, rules or sets of this table. It calls others when something changed
// that Admit has to check. It calls both when notifications may have been lost.
// Elements of maps come and go with containers, so their changes are not
// reported. Neither function may block. They are not called after stop has
// returned.
func (t *Table) Watch(changed, others func()) (stop func() error, err error) {
	fail := func(err error) (func() error, error) {
		return nil, fmt.Errorf("watch nftables table %s: %w", t.name, err)
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fail(err)
	}
	if err := conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return fail(errors.Join(err, conn.Close()))
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			messages, err := conn.Receive()
			switch {
			case errors.Is(err, unix.ENOBUFS):
				changed() // the socket's buffer overflowed
				others()
				continue
			case err != nil:
				return // closed
			}
			var own, other bool
			for _, m := range messages {
				ours, theirs := t.concerns(m)
				own, other = own || ours, other || theirs
			}
			if own {
				changed()
			}
			if other {
				others()
			}
		}
	}()
	return func() error {
		err := conn.Close()
		<-done
		return err
	}, nil
}

// concerns parses struct nfgenmsg and the needed attributes. In all these
// messages attribute 1 is the table's name (linux/netfilter/nf_tables.h).
func (t *Table) concerns(m netlink.Message) (own, other bool) {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < 4 {
		return false, false
	}
	family, known := families[nftables.TableFamily(m.Data[0])]
	if !known {
		return false, false
	}
	kind := m.Header.Type & 0xff
	switch kind {
	case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN,
		unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE, unix.NFT_MSG_NEWSET, unix.NFT_MSG_DELSET:
	default:
		return false, false
	}
	attrs, err := netlink.UnmarshalAttributes(m.Data[4:])
	if err != nil {
		return true, true // the message can't be parsed
	}
	var table string
	hook := false
	for _, a := range attrs {
		switch {
		case a.Type == unix.NFTA_TABLE_NAME:
			table = string(bytes.TrimRight(a.Data, "\x00"))
		case kind == unix.NFT_MSG_NEWCHAIN && a.Type&^unix.NLA_F_NESTED == unix.NFTA_CHAIN_HOOK:
			hook = true
		}
	}
	if family == "inet" && table == t.name {
		return true, false
	}
	// Another table matters if a base chain was added or got another policy, or if
	// Admit found forward hooks in it.
	hooked := t.hooked.Load()
	return false, hook || hooked != nil && (*hooked)[family+" "+table]
}
