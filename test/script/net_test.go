// SPDX-License-Identifier: Apache-2.0

package script

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"holdfast/test/kit"
)

func stamp(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: stamp NAME")
	}
	now := time.Now()
	ts.Setenv(args[0], fmt.Sprintf("%d.%09d", now.Unix(), now.Nanosecond()))
}

// listen binds a port, as another process on the host may.
func listen(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: listen NAME")
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	ts.Setenv(args[0], strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
}

// echoServer answers UDP in a container's network, because busybox has no UDP
// server.
func (s *scene) echoServer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: echo-server CONTAINER PORT")
	}
	pid := s.d.Docker("inspect", "-f", "{{.State.Pid}}", args[0])
	listening := make(chan error, 1)
	var conn net.PacketConn
	go kit.InNetns("/proc/"+pid+"/ns/net", func() (err error) {
		conn, err = net.ListenPacket("udp4", ":"+args[1])
		listening <- err
		if err != nil {
			return err
		}
		buf := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return err
			}
			if _, err := conn.WriteTo(buf[:n], from); err != nil {
				return err
			}
		}
	})
	ts.Check(<-listening)
	ts.Defer(func() { conn.Close() })
}

func sayUDP(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: say-udp ADDRESS TEXT")
	}
	conn, err := net.Dial("udp", args[0])
	ts.Check(err)
	defer conn.Close()
	ts.Check(conn.SetDeadline(time.Now().Add(5 * time.Second)))
	_, err = conn.Write([]byte(args[1]))
	ts.Check(err)
	buf := make([]byte, 2048)
	n, err := conn.Read(buf)
	ts.Check(err)
	fmt.Fprintln(ts.Stdout(), strings.TrimSpace(string(buf[:n])))
}
