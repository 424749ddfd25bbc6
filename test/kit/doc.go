// Package kit is what tests that need root share: a private daemon with
// everything of its own, the clients, images and a registry, a prober, and the
// check that nothing of it is left.
//
// A test starts with
//
//	d := kit.Start(t, kit.Options{LiveRestore: true})
//
// and gets a daemon in /tmp/hf-XXXXXXXX, with a bridge, a subnet, an nftables
// table and a cgroup of that name, so that any number of tests run beside each
// other and beside an installed engine. When the test ends, also by a failure
// or a panic, the kit removes the containers through the daemon, stops it, and
// fails the test if a process, mount, link, nftables element, cgroup or file
// is left; and then removes that.
//
// What a killed test process leaves is removed by the next one.
//
// The binaries are those in the folder HOLDFAST_BIN, or are built once per
// test process.
package kit
