// SPDX-License-Identifier: Apache-2.0

package networks

import (
	"bytes"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// announcement is a gratuitous ARP request or an unsolicited neighbour
// advertisement of an address.
type announcement struct {
	ip string
	at time.Time
}

// announced calls f, waits, and returns the announcements that came to a
// container's namespace meanwhile.
func (h *house) announced(listener string, f func(), wait time.Duration) (all []announcement) {
	h.Helper()
	var fd int
	h.within(listener, func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		return err
	})
	defer unix.Close(fd)
	// The end is looked at between two reads, which return after this time.
	tv := unix.NsecToTimeval(int64(50 * time.Millisecond))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		h.Fatal(err)
	}
	end := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		frame := make([]byte, 2048)
		for {
			select {
			case <-end:
				return
			default:
			}
			n, _, err := unix.Recvfrom(fd, frame, 0)
			if err != nil {
				continue // nothing came in time
			}
			f := frame[:n]
			switch {
			case len(f) >= 42 && f[12] == 8 && f[13] == 6 && bytes.Equal(f[28:32], f[38:42]):
				all = append(all, announcement{net.IP(f[28:32]).String(), time.Now()})
			case len(f) >= 86 && f[12] == 0x86 && f[13] == 0xdd && f[54] == 136:
				all = append(all, announcement{net.IP(f[62:78]).String(), time.Now()})
			}
		}
	}()
	f()
	<-time.After(wait)
	close(end)
	<-done
	return all
}

// A frame may be lost, and a neighbour ignores one that comes just after an
// answer, so a new address is announced three times.
func TestNewAddressIsAnnouncedAsOftenAsTheNetworkSays(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	for name, c := range map[string]struct {
		digit   string
		options []string
		times   int
		every   time.Duration
	}{
		"normal": {"1", nil, 3, time.Second},
		"fast":   {"2", []string{"-o", "com.docker.network.advertise_addr_ms=100"}, 3, 100 * time.Millisecond},
		"twice":  {"3", []string{"-o", "com.docker.network.advertise_addr_nmsgs=2", "-o", "com.docker.network.advertise_addr_ms=100"}, 2, 100 * time.Millisecond},
		"once":   {"4", []string{"-o", "com.docker.network.advertise_addr_nmsgs=1"}, 1, 0},
		"never":  {"5", []string{"-o", "com.docker.network.advertise_addr_nmsgs=0"}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			h := *h
			h.T = t
			six := "fd05:" + strings.TrimPrefix(h.net, "10.") + ":8" + c.digit + "::"
			args := append([]string{"network", "create", "--subnet", h.net + "." + c.digit + ".0/24", "--ipv6", "--subnet", six + "/64"}, c.options...)
			h.d.Docker(append(args, name)...)
			listener := "listens-" + name
			h.run(listener, "--network", name, image, "sleep", "9999")
			want := []string{h.net + "." + c.digit + ".77", six + "77"}
			came := map[string][]time.Time{}
			// The listener hears its own announcements, which concern other addresses.
			for _, a := range h.announced(listener, func() {
				h.run(name, "--network", name, "--ip", want[0], "--ip6", want[1], image, "sleep", "9999")
			}, 2*c.every+1500*time.Millisecond) {
				came[a.ip] = append(came[a.ip], a.at)
			}
			for _, ip := range want {
				got := came[ip]
				if len(got) != c.times {
					t.Errorf("%s was announced %d times, want %d", ip, len(got), c.times)
					continue
				}
				for i := 1; i < len(got); i++ {
					if gap := got[i].Sub(got[i-1]); gap < c.every*8/10 {
						t.Errorf("%s: %v between two announcements, want %v", ip, gap, c.every)
					}
				}
			}
		})
	}
}

// The address of a container that has left a network may be another's at once,
// so it must not be announced any longer.
func TestAddressThatWasGivenUpIsNotAnnounced(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.d.Docker("network", "create", "--subnet", h.net+".1.0/24", "-o", "com.docker.network.advertise_addr_ms=2000", "own")
	h.run("ada", "--network", "own", image, "sleep", "9999")
	h.run("bob", image, "sleep", "9999")
	var gone time.Time
	came := map[string]bool{}
	for _, a := range h.announced("ada", func() {
		h.d.Docker("network", "connect", "--ip", h.net+".1.77", "own", "bob")
		h.run("cyd", "--network", "own", "--ip", h.net+".1.78", image, "sleep", "9999")
		h.d.Docker("network", "disconnect", "own", "bob")
		h.d.Docker("rm", "-f", "cyd")
		gone = time.Now()
	}, 3*time.Second) {
		if strings.HasSuffix(a.ip, ".1.2") {
			continue // ada's own
		}
		came[a.ip] = true
		if a.at.After(gone.Add(200 * time.Millisecond)) {
			t.Errorf("%s is announced %v after it was given up", a.ip, a.at.Sub(gone))
		}
	}
	for _, ip := range []string{h.net + ".1.77", h.net + ".1.78"} {
		if !came[ip] {
			t.Errorf("%s was never announced", ip)
		}
	}
}
