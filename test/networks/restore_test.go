// SPDX-License-Identifier: Apache-2.0

package networks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

// Not in parallel: no other test may change anything in the namespace.
func TestRestoreAfterKill9TouchesNothingInTheKernel(t *testing.T) {
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "--ipv6", "one")
	h.d.Docker("network", "create", "--internal", "two")
	h.serve("ada", "--network", "one", "--network", "two", "-p", "18083:80")
	h.serve("bob", "--network", "two")
	h.serve("cyd", "-p", "18084:80/udp")
	// The kernel needs some time for duplicate address detection of its
	// link-local addresses.
	kit.Eventually(t, "no address is tentative", func() bool {
		return !strings.Contains(h.host("ip", "-6", "addr", "show", "tentative"), "inet6")
	})
	for range 2 {
		kit.AwaitAddresses(t)
		h.d.Kill9()
		before, watch := generation(t), watchKernel(t)
		h.d.Start()
		if after := generation(t); after != before {
			t.Errorf("the packet filter's generation went from %d to %d", before, after)
		}
		if events := watch(); len(events) > 0 {
			t.Errorf("interfaces, addresses or routes were changed: %v", events)
		}
	}
}

func netlinkSocket(t *testing.T, protocol int, groups uint32) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err == nil {
		t.Cleanup(func() { unix.Close(fd) })
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// generation returns the number of transactions of the packet filter.
func generation(t *testing.T) uint32 {
	t.Helper()
	fd := netlinkSocket(t, unix.NETLINK_NETFILTER, 0)
	msg := make([]byte, unix.SizeofNlMsghdr+4)
	binary.NativeEndian.PutUint32(msg, uint32(len(msg)))
	binary.NativeEndian.PutUint16(msg[4:], unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN)
	binary.NativeEndian.PutUint16(msg[6:], unix.NLM_F_REQUEST)
	buf := make([]byte, 4096)
	_, err := unix.Write(fd, msg)
	n := 0
	if err == nil {
		n, err = read(fd, buf)
	}
	if err != nil {
		t.Fatal(err)
	}
	ms, err := syscall.ParseNetlinkMessage(buf[:n])
	if err != nil || len(ms) == 0 || ms[0].Header.Type != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN || len(ms[0].Data) < 12 {
		t.Fatalf("generation: %v, %v", ms, err)
	}
	return binary.BigEndian.Uint32(ms[0].Data[8:]) // after nfgenmsg: NFTA_GEN_ID
}

// watchKernel returns a function that lists the changes of interfaces,
// addresses and routes since. The kernel sends a notification before the system
// call that makes the change returns.
func watchKernel(t *testing.T) func() []string {
	t.Helper()
	fd := netlinkSocket(t, unix.NETLINK_ROUTE, unix.RTMGRP_LINK|unix.RTMGRP_IPV4_IFADDR|unix.RTMGRP_IPV6_IFADDR|unix.RTMGRP_IPV4_ROUTE|unix.RTMGRP_IPV6_ROUTE)
	return func() (events []string) {
		buf := make([]byte, 1<<16)
		for {
			n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if errors.Is(err, unix.EAGAIN) {
				return events
			}
			if err != nil {
				t.Fatal(os.NewSyscallError("recvfrom", err))
			}
			ms, err := syscall.ParseNetlinkMessage(buf[:n])
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range ms {
				events = append(events, fmt.Sprintf("type %d: %x", m.Header.Type, m.Data))
			}
		}
	}
}

func TestThousandPortsOfOneContainerAreAnsweredWithoutADaemon(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "net")
	h.serve("first", "--network", "net", "-p", "127.0.0.1:28000:80")
	began := time.Now()
	// All ports of the range are published; three of them have a server behind
	// them.
	h.run("ada", "--network", "net", "-p", "127.0.0.1:20000-20999:8000-8999", image, "sh", "-c",
		"mkdir /srv; hostname > /srv/index.html; for p in 8000 8500 8999; do httpd -p $p -h /srv; done; exec sleep 9999")
	many := time.Since(began)
	began = time.Now()
	h.serve("bob", "--network", "net", "-p", "127.0.0.1:28001:80")
	t.Logf("run -d with 1,000 ports: %s, with one port beside them: %s", many, time.Since(began))
	h.reaches("ada", "127.0.0.1:8999", "ada")
	h.always(func() {
		for _, port := range []int{20000, 20500, 20999} {
			h.equal("published port", fetchHost(fmt.Sprintf("http://127.0.0.1:%d/", port)), "ada")
		}
		h.equal("elements", fmt.Sprint(strings.Count(h.rules(), " comment \""+h.ids["ada"][:12])), "1000")
	})
	h.refused("port is already allocated", "run", "--rm", "-p", "127.0.0.1:20500:80", image)
	h.d.Docker("rm", "-f", "ada")
	delete(h.pids, "ada")
	h.equal("elements that are left", fmt.Sprint(strings.Count(h.rules(), " comment ")), "2")
}
