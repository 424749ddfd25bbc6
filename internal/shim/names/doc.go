// Package names is the name server of a container: it answers at 127.0.0.11 in
// the container's network namespace what the container's networks know, and
// asks the host's servers for the rest. The shim links it, so it stays small:
// raw sockets, no package net.
//
// What the networks know it reads from files that the daemon renames into
// place, so names go on resolving while no daemon lives:
//
//	<run dir>/names.json            View: the container's networks and servers
//	<exec root>/names/<network>.json  Network: who is on a network
//
// A file is read again when its inode, size or time of change is another.
package names

// Schema is the number of both files' form. A file with a higher number is
// taken as far as it is understood: forms only gain fields.
const Schema = 1

// View is what one container sees.
type View struct {
	Schema int `json:"schema"`
	// Networks are paths of Network files, in the order in which they are
	// asked.
	Networks []string `json:"networks"`
	// Links are names for this container only, each with the name that it
	// stands for.
	Links map[string]string `json:"links,omitempty"`
	// Upstream are the servers for all other names, "address:port" with IPv6
	// addresses in brackets. They are asked from the host's network namespace.
	// None: all other names do not exist, as in an internal network.
	Upstream []string `json:"upstream,omitempty"`
}

// Network is who is on a network.
type Network struct {
	Schema int    `json:"schema"`
	Name   string `json:"name"`
	// Subnets are those of the network, where it has them for itself: addresses
	// in them are nobody else's business.
	Subnets []string `json:"subnets,omitempty"`
	Members []Member `json:"members"`
}

// Member is a container on a network. One that does not run has no addresses:
// its names are known, and do not resolve.
type Member struct {
	Name      string   `json:"name"`
	Names     []string `json:"names,omitempty"` // others that it is known by: ID, aliases
	Addresses []string `json:"addresses,omitempty"`
}
