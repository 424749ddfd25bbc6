package main

import (
	"net/http"
	"runtime/debug"
	"time"
)

// calm is how long after the beginning or the end of a request its memory is
// given back.
const calm = 2 * time.Second

// giveBackMemory passes requests on, and gives back to the host what they have
// used when none has come or ended for a while, and what the start has used.
// The runtime would keep it: it collects by how much is allocated, and a daemon
// that nobody asks anything allocates nothing.
func giveBackMemory(h http.Handler) http.Handler {
	quiet := time.AfterFunc(calm, debug.FreeOSMemory)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		quiet.Reset(calm)
		defer quiet.Reset(calm)
		h.ServeHTTP(w, r)
	})
}

// startGrowth is the garbage, in percent of what is in use, that a start may
// make before it is collected.
const startGrowth = 400

// growFreely saves the start most of its collections: what it reads is garbage
// as soon as it is decoded, and is given back when all is quiet. usual is
// called at its end.
func growFreely() (usual func()) {
	before := debug.SetGCPercent(startGrowth)
	if before < 0 || before > startGrowth { // whoever set that wants it so
		debug.SetGCPercent(before)
	}
	return func() { debug.SetGCPercent(before) }
}
