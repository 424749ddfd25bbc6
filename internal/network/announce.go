// SPDX-License-Identifier: Apache-2.0

package network

import (
	"cmp"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"holdfast/internal/errs"
	"holdfast/internal/network/bridge"
)

// Announcements say how often an interface's addresses are announced to its
// neighbours when the interface is made. More than one is needed because a frame
// may be lost, and because a neighbour ignores one that comes within a second of
// an answer (locktime of the kernel's neighbour tables).
type Announcements struct {
	Times    int `json:"times"`    // 0 to 3
	Interval int `json:"interval"` // milliseconds, 100 to 2000
}

// defaultAnnouncements are Docker's, and those of RFC 5227 and RFC 4861.
var defaultAnnouncements = Announcements{Times: 3, Interval: 1000}

// parseAnnouncements parses a network's options. It fails with ErrInvalidArgument,
// in Docker's words, and then returns the default for what is wrong.
func parseAnnouncements(o map[string]string) (Announcements, error) {
	a := defaultAnnouncements
	var wrong []error
	for _, f := range []struct {
		key, kind string
		to        *int
		min, max  int
	}{
		{optAnnouncements, "an integer", &a.Times, 0, 3},
		{optAnnounceEvery, "integer milliseconds", &a.Interval, 100, 2000},
	} {
		v, ok := o[f.key]
		if !ok {
			continue
		}
		n, err := strconv.Atoi(v)
		if err != nil {
			wrong = append(wrong, errs.Invalid("value for option %s %q must be %s", f.key, v, f.kind))
		} else if n < f.min || n > f.max {
			wrong = append(wrong, errs.Invalid("%s must be in the range %d to %d", f.key, f.min, f.max))
		} else {
			*f.to = n
		}
	}
	return a, errors.Join(wrong...)
}

// recorded returns what an endpoint's record says of its announcements: nil for
// the default.
func (a Announcements) recorded() *Announcements {
	if a == defaultAnnouncements {
		return nil
	}
	return &a
}

// announceAgain makes the announcements after the first, which was part of
// creating the interface. They end when the registry no longer has the endpoint, as
// the container has left the network or has ended. Those that are due after the
// daemon's end are not made.
func announceAgain(s Sandbox, interfaces []bridge.Interface, log *slog.Logger, reg *registry) {
	for _, e := range s.Endpoints {
		i := slices.IndexFunc(interfaces, func(l bridge.Interface) bool { return l.Name == e.Name })
		a := *cmp.Or(e.Announce, &defaultAnnouncements)
		if i < 0 || a.Times < 2 {
			continue
		}
		l := interfaces[i]
		// The container may change its hardware address in the meantime: the address
		// is looked up each time.
		l.MAC = nil
		again := a.Times - 1
		interval := time.Duration(a.Interval) * time.Millisecond
		var round func()
		round = func() {
			now, _ := reg.findSandbox(s.Container)
			if now.ID != s.ID || !slices.ContainsFunc(now.Endpoints, func(o Endpoint) bool { return o.ID == e.ID }) {
				return
			}
			if err := bridge.Announce(s.Netns, l); err != nil {
				log.Debug("addresses not announced to the neighbours", "container", s.Container, "interface", e.Name, "error", err)
				return
			}
			if again--; again > 0 {
				time.AfterFunc(interval, round)
			}
		}
		time.AfterFunc(interval, round)
	}
}
