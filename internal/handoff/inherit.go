package handoff

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
)

// Inherited are the listening sockets that this process was given: by the
// service manager, from a socket unit or from its descriptor store, or by a
// predecessor.
type Inherited struct {
	// own are sockets that an earlier daemon listened on, by storeName. Of one
	// address there are several where socket units gave them.
	own map[string][]*os.File
	// units are those of socket units, in their order.
	units []*os.File
}

const storePrefix = "holdfast-"

// storeName is what a listener for an address is called in the service
// manager's descriptor store: names there may not hold every character.
func storeName(address string) string {
	sum := sha256.Sum256([]byte(address))
	return storePrefix + hex.EncodeToString(sum[:8])
}

// FromServiceManager takes the descriptors that came with this process's
// start, by the protocol of sd_listen_fds(3). It works once.
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

// FromPredecessor takes the descriptors that another daemon handed over, by
// the address that each listens on.
func FromPredecessor(sockets []Socket) *Inherited {
	in := &Inherited{own: map[string][]*os.File{}}
	for _, s := range sockets {
		name := storeName(s.Address)
		in.own[name] = append(in.own[name], s.File)
	}
	return in
}

// claim gives the socket of an address, once.
func (in *Inherited) claim(address string) *os.File {
	if all := in.claimAll(address); len(all) > 0 {
		for _, f := range all[1:] {
			f.Close()
		}
		return all[0]
	}
	return nil
}

// claimAll gives all sockets of an address, once.
func (in *Inherited) claimAll(address string) []*os.File {
	if in == nil {
		return nil
	}
	name := storeName(address)
	all := in.own[name]
	delete(in.own, name)
	return all
}

// unclaimed closes what nobody asked for and returns the names.
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
