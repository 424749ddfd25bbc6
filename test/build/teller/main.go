// SPDX-License-Identifier: Apache-2.0

// Command teller writes what it finds out into a file:
//
//	teller arch FILE   the architecture that it was built for
//	teller agent FILE  the number of keys of the ssh agent at SSH_AUTH_SOCK
//
// Images of tests have it.
package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
)

func main() {
	text := runtime.GOARCH
	if os.Args[1] == "agent" {
		n, err := keys(os.Getenv("SSH_AUTH_SOCK"))
		if err != nil {
			fail(err)
		}
		text = fmt.Sprint(n)
	}
	if err := os.WriteFile(os.Args[2], []byte(text+"\n"), 0o644); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// keys asks an agent for its keys (draft-ietf-sshm-ssh-agent, SSH_AGENTC_REQUEST_IDENTITIES).
func keys(socket string) (uint32, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{0, 0, 0, 1, 11}); err != nil {
		return 0, err
	}
	var head [9]byte // length, type, number of keys
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return 0, err
	}
	if head[4] != 12 {
		return 0, fmt.Errorf("the agent answers with message %d", head[4])
	}
	return binary.BigEndian.Uint32(head[5:]), nil
}
