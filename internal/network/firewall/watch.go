package firewall

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Watch calls changed when somebody, ourselves too, changed the tables, chains,
// rules or sets of this table, others when what Admit has to look at was, and
// both when it may have missed it. The elements of maps come and go with
// containers and are not told. Neither may wait. After stop they are no longer
// called.
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
				changed() // more came than the socket holds
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

// concerns reads struct nfgenmsg and the attributes that count: in all these
// messages the table's name is number 1 (linux/netfilter/nf_tables.h).
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
		return true, true // can't tell
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
	// A base chain is new, or has another policy; or the table is one of
	// those whose rules count.
	hooked := t.hooked.Load()
	return false, hook || hooked != nil && (*hooked)[family+" "+table]
}
