// SPDX-License-Identifier: Apache-2.0

package server

import (
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// dialConsole makes a console and connects to it, as a runtime does when it begins.
func dialConsole(t *testing.T) (*console, *net.UnixConn) {
	t.Helper()
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	was := consoleTime
	consoleTime = 20 * time.Millisecond
	t.Cleanup(func() { consoleTime = was })
	c, err := newConsole(int(dir.Fd()), "c.sock", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", c.address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return c, conn.(*net.UnixConn)
}

func TestTerminalMayComeLongAfterTheRuntimeHasConnected(t *testing.T) {
	c, conn := dialConsole(t)
	<-time.After(20 * consoleTime)
	sent, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer sent.Close()
	if _, _, err := conn.WriteMsgUnix([]byte("/dev/pts/0"), unix.UnixRights(int(sent.Fd())), nil); err != nil {
		t.Fatalf("the runtime's connection was closed: %v", err)
	}
	master, err := c.take()
	if err != nil {
		t.Fatal(err)
	}
	master.Close()
	c.close()
}

func TestTerminalThatDoesNotComeEndsTheWait(t *testing.T) {
	c, _ := dialConsole(t)
	if _, err := c.take(); err == nil {
		t.Error("a terminal that was not sent")
	}
	c.close()
	c, _ = dialConsole(t)
	c.close() // the runtime has failed, and its connection is still open
}
