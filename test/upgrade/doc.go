// Package upgrade runs releases over each other: the daemon of one over the
// shims and files of another, up and down, with containers that run meanwhile.
// versions.txt names the commits; each is built once and kept in
// .cache/versions.
package upgrade
