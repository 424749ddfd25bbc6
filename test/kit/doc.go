// SPDX-License-Identifier: Apache-2.0

// Package kit is shared by the tests that need root. It has a private daemon with
// resources of its own, clients, images and a registry, a prober, a check for
// leaks, and helpers for waiting, processes, shims and namespaces.
//
// A test starts with
//
//	d := kit.Start(t, kit.Options{LiveRestore: true})
//
// and gets a daemon in /tmp/ID, with a bridge, a subnet, an nftables table and a
// cgroup of that name. ID is hf- and eight hexadecimal digits. So any number of
// tests can run at the same time, also on a host with an installed engine. When
// the test ends, also by a failure or a panic, the kit removes the containers
// through the daemon and stops it. If a process, mount, interface, nftables
// element, cgroup or file is left, it fails the test and removes that.
//
// The leftovers of a killed test process are removed by the next one.
//
// The binaries are those in the directory HOLDFAST_BIN, or are built once per
// test process.
package kit
