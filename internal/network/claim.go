// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// claimName is an abstract socket. Each network namespace has its own, and the
// kernel removes it when its process ends.
const claimName = "@holdfast-networks"

// claim keeps other engines of this host from choosing a subnet until release is
// called. It is needed because a subnet counts as free until an interface has an
// address in it, which is some time after it was chosen.
func claim(ctx context.Context) (release func(), err error) {
	for {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "unix", claimName)
		if err == nil {
			return func() { l.Close() }, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("claim the choice of subnets: %w", err)
		}
		ours, err := awaitClaim(ctx)
		if err != nil {
			return nil, fmt.Errorf("wait for another engine of this host to choose a subnet: %w", err)
		}
		if !ours {
			// Any process can bind this abstract name. A process of another user must
			// not be able to block the engine, so go on without the claim.
			return func() {}, nil
		}
	}
}

// awaitClaim waits until the current claim is released. ours is false if the
// process that holds it runs as another user than this engine.
func awaitClaim(ctx context.Context) (ours bool, err error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", claimName)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ECONNRESET) {
		return true, nil // it was released between Listen and Dial
	}
	if err != nil {
		return false, err
	}
	defer c.Close()
	holder, err := peer(c.(*net.UnixConn))
	if err != nil || int(holder.Uid) != os.Geteuid() {
		return false, err
	}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	// The holder never sends anything: Read returns when the claim ends.
	if _, err := c.Read(make([]byte, 1)); ctx.Err() != nil {
		return false, ctx.Err()
	} else if !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
		return false, err
	}
	return true, nil
}

func peer(c *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return nil, cerr
	}
	return cred, err
}
