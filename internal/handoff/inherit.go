// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
)

// Inherited holds the listening sockets that this process received: from the
// service manager, by a socket unit or its descriptor store, or from a
// predecessor.
type Inherited struct {
	// own holds the sockets that an earlier daemon listened on, by storeName. One
	// address may have several sockets if socket units provided them.
	own map[string][]*os.File
	// units holds the sockets of socket units, in their order.
	units []*os.File
}

const storePrefix = "holdfast-"

// storeName returns the name of a listener's socket in the service manager's
// descriptor store. It encodes the address because names there are restricted.
func storeName(address string) string {
	sum := sha256.Sum256([]byte(address))
	return storePrefix + hex.EncodeToString(sum[:8])
}

// FromServiceManager takes the descriptors that this process was started with, by
// the protocol of sd_listen_fds(3). It only works once.
func FromServiceManager() *Inherited {
	in := &Inherited{own: map[string][]*os.File{}}
	for _, f := range activation.Files(true) {
		name := f.Name()
		if _, twice := in.own[name]; strings.HasPrefix(name, storePrefix) && !twice {
			in.own[name] = []*os.File{f}
			continue
		}
		in.units = append(in.units, f)
	}
	return in
}

// FromPredecessor takes the descriptors that another daemon handed over. Each has
// the address that it listens on.
func FromPredecessor(sockets []Socket) *Inherited {
	in := &Inherited{own: map[string][]*os.File{}}
	for _, s := range sockets {
		name := storeName(s.Address)
		in.own[name] = append(in.own[name], s.File)
	}
	return in
}

// claim removes and returns the socket of an address.
func (in *Inherited) claim(address string) *os.File {
	if all := in.claimAll(address); len(all) > 0 {
		for _, f := range all[1:] {
			f.Close()
		}
		return all[0]
	}
	return nil
}

// claimAll removes and returns all sockets of an address.
func (in *Inherited) claimAll(address string) []*os.File {
	if in == nil {
		return nil
	}
	name := storeName(address)
	all := in.own[name]
	delete(in.own, name)
	return all
}

// unclaimed closes the sockets that were not claimed and returns their names.
func (in *Inherited) unclaimed() []string {
	if in == nil {
		return nil
	}
	var names []string
	for name, all := range in.own {
		names = append(names, name)
		for _, f := range all {
			f.Close()
		}
	}
	in.own = nil
	for _, f := range in.units {
		f.Close()
	}
	in.units = nil
	return names
}
