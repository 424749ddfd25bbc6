// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package nodaemon

import (
	"context"
	"net"
)

// Dialer connects to a daemon's socket.
type Dialer struct{ socket string }

// New makes a dialer for the daemon's socket. There are shims on Linux only, so
// note is never called.
func New(socket string, _ func(socket string)) *Dialer { return &Dialer{socket} }

// DialContext connects.
func (d *Dialer) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	var dialer net.Dialer
	return dialer.DialContext(ctx, "unix", d.socket)
}
