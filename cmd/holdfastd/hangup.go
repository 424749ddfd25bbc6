package main

import (
	"context"
	"time"
)

// How long a stop waits: for requests under way, and for the first word of a
// client that has connected and asked nothing yet.
const (
	requestGrace = 2 * time.Second
	silentGrace  = 200 * time.Millisecond
)

// hangUp ends the API: no new connections, then every stream, then what is
// left of the requests.
func (d *daemon) hangUp() {
	d.endRequests()
	// http.Server.Shutdown would wait for silent connections as for requests.
	timer := time.AfterFunc(silentGrace, d.gate.closeSilent)
	defer timer.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), requestGrace)
	defer cancel()
	if err := d.server.Shutdown(ctx); err != nil {
		d.server.Close()
	}
}
