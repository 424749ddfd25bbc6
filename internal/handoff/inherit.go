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
	// own are sockets that an earlier daemon opened, by storeName.
	own map[string]*os.File
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
	in := &Inherited{own: map[string]*os.File{}}
	for _, f := range activation.Files(true) {
		name := f.Name()
		if _, twice := in.own[name]; strings.HasPrefix(name, storePrefix) && !twice {
			in.own[name] = f
			continue
		}
		in.units = append(in.units, f)
	}
	return in
}

// FromPredecessor takes the descriptors that another daemon handed over, by
// the address that each listens on.
func FromPredecessor(files map[string]*os.File) *Inherited {
	in := &Inherited{own: map[string]*os.File{}}
	for address, f := range files {
		in.own[storeName(address)] = f
	}
	return in
}

// claim gives the socket of an address, once.
func (in *Inherited) claim(address string) *os.File {
	if in == nil {
		return nil
	}
	name := storeName(address)
	f := in.own[name]
	delete(in.own, name)
	return f
}

// unclaimed closes what nobody asked for and returns the names.
func (in *Inherited) unclaimed() []string {
	if in == nil {
		return nil
	}
	var names []string
	for name, f := range in.own {
		names = append(names, name)
		f.Close()
	}
	in.own = nil
	for _, f := range in.units {
		f.Close()
	}
	in.units = nil
	return names
}
