// Package demo is "holdfast demo": it shows on this machine, in a private
// daemon with a root of its own, that a container does not notice the death of
// its daemon. It owns the temporary folder that it makes and everything whose
// name comes from it, takes all of it away again, and touches no other daemon.
package demo
