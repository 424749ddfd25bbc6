// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"
)

// How long a stop waits: for running requests, and for the first bytes of a
// client that has connected but sent nothing yet.
const (
	requestGrace = 2 * time.Second
	silentGrace  = 200 * time.Millisecond
)

// hangUp ends the API: it stops accepting connections, then ends every stream,
// then the remaining requests.
func (d *daemon) hangUp() {
	d.endRequests()
	// http.Server.Shutdown would wait for silent connections as it waits for
	// requests.
	timer := time.AfterFunc(silentGrace, d.gate.closeSilent)
	defer timer.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), requestGrace)
	defer cancel()
	if err := d.server.Shutdown(ctx); err != nil {
		d.server.Close()
	}
}
