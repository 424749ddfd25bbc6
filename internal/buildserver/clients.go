// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"context"
	"net"
	"sync"
)

// peer is a client's connection, with the part of its request that the daemon has
// read.
type peer struct {
	net.Conn
	headers map[string][]string // of every answer
	end     func()              // notes that the client has left

	mu    sync.Mutex
	ahead []byte
}

func (c *peer) Read(p []byte) (int, error) {
	c.mu.Lock()
	if len(c.ahead) > 0 {
		n := copy(p, c.ahead)
		c.ahead = c.ahead[n:]
		c.mu.Unlock()
		return n, nil
	}
	c.mu.Unlock()
	return c.Conn.Read(p)
}

// CloseWrite ends the sending side.
func (c *peer) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Conn.Close()
}

func (c *peer) Close() error {
	err := c.Conn.Close()
	c.end()
	return err
}

type clientKey struct{}

// withClient is an http.Server's ConnContext.
func withClient(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, clientKey{}, c)
}

// passed is a listener whose connections are passed to it.
type passed struct {
	conns chan net.Conn
	once  sync.Once
	ended chan struct{}
}

func newPassed() *passed { return &passed{conns: make(chan net.Conn), ended: make(chan struct{})} }

func (p *passed) add(c net.Conn) {
	select {
	case p.conns <- c:
	case <-p.ended:
		c.Close()
	}
}

func (p *passed) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.ended:
		return nil, net.ErrClosed
	}
}

func (p *passed) Close() error {
	p.once.Do(func() { close(p.ended) })
	return nil
}

// Addr is required by net.Listener and has no meaning.
func (p *passed) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }
