// SPDX-License-Identifier: Apache-2.0

// Package names is the DNS server of a container. It listens at 127.0.0.11 in the
// container's network namespace, answers for the names on the container's
// networks, and forwards all other questions to the host's servers. The shim links
// it, so it stays small: raw sockets, no package net.
//
// It reads the names from files that the daemon renames into place, so names
// continue to resolve while no daemon lives:
//
//	<run dir>/names.json            View: the container's networks and servers
//	<exec root>/names/<network>.json  Network: the members of a network
//
// A file is read again when its inode, size or modification time has changed.
package names

// Schema is the schema number of both files. Of a file with a higher number the
// known fields are used: schemas only gain fields.
const Schema = 1

// View is what one container resolves.
type View struct {
	Schema int `json:"schema"`
	// Networks are the paths of Network files, in the order in which they are
	// searched.
	Networks []string `json:"networks"`
	// Links are aliases for this container only, each with the name that it stands
	// for.
	Links map[string]string `json:"links,omitempty"`
	// Upstream are the servers for all other names, as "address:port" with IPv6
	// addresses in brackets. They are queried from the host's network namespace. If
	// there are none, as in an internal network, all other names do not exist.
	Upstream []string `json:"upstream,omitempty"`
}

// Network has the members of a network.
type Network struct {
	Schema int    `json:"schema"`
	Name   string `json:"name"`
	// Subnets are the subnets that the network has for itself: reverse lookups of
	// addresses in them are never forwarded.
	Subnets []string `json:"subnets,omitempty"`
	// TTL is for how long clients may keep an answer, in seconds. 0 means 600, as in
	// Docker.
	TTL     uint32   `json:"ttl,omitempty"`
	Members []Member `json:"members"`
}

// Member is a container on a network. One that does not run has no addresses: its
// names exist but do not resolve.
type Member struct {
	Name      string   `json:"name"`
	Names     []string `json:"names,omitempty"` // other names: ID, aliases
	Addresses []string `json:"addresses,omitempty"`
}
