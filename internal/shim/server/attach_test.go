// SPDX-License-Identifier: Apache-2.0

package server

import (
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/internal/logs/format"
	"holdfast/internal/shim/proto"
	"holdfast/internal/shim/stream"
)

// A client blocks only the streams that it reads, until it reads on, is detached,
// or has gone.
func TestContainerWaitsForTheClientsThatReadAStream(t *testing.T) {
	o := newOutput()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	sock, err := stream.NewSocket(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	peer := os.NewFile(uintptr(fds[1]), "peer")
	defer peer.Close()
	c := &client{stream.New(sock, stream.Options{Raw: true, Bound: backlogSize}, nil), proto.Attach{Stdout: true, Raw: true}}
	if _, err := o.attach(c); err != nil {
		t.Fatal(err)
	}
	c.send(format.Stdout, make([]byte, backlogSize-1))
	if o.backpressure(format.Stdout) != nil {
		t.Error("backpressure below the limit")
	}
	c.send(format.Stdout, make([]byte, 1))
	room := o.backpressure(format.Stdout)
	if room == nil {
		t.Fatal("no backpressure from a client at the limit")
	}
	if o.backpressure(format.Stderr) != nil {
		t.Error("a client that reads only stdout blocks stderr")
	}
	go c.Join(nil, nil)
	if _, err := io.ReadFull(peer, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	<-room // the client has read
	for o.backpressure(format.Stdout) == nil {
		c.send(format.Stdout, make([]byte, 64<<10))
	}
	room = o.backpressure(format.Stdout)
	peer.Close() // the client goes
	for ; room != nil; room = o.backpressure(format.Stdout) {
		<-room
	}
	<-c.Done()
}
