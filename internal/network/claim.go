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

// claimName is an abstract socket: there is one in each network namespace, and
// it goes with its process.
const claimName = "@holdfast-networks"

// claim keeps other engines of the host from choosing a subnet until release
// is called: a subnet is free as long as no interface has an address of it,
// which is some time after it was chosen.
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
			// Anyone can bind such a name, and no one else may hold us up by it.
			return func() {}, nil
		}
	}
}

// awaitClaim waits until a claim is released. ours is false if its holder is
// another user than engines run as.
func awaitClaim(ctx context.Context) (ours bool, err error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", claimName)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ECONNRESET) {
		return true, nil // it was released in between
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
	// Nothing is ever sent: this ends with the claim.
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
