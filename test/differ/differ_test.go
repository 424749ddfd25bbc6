// SPDX-License-Identifier: Apache-2.0

package differ

import (
	"context"
	"flag"
	"fmt"
	"hash/fnv"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"holdfast/test/differ/catalogue"
	"holdfast/test/kit"
)

var (
	full  = flag.Bool("full", false, "run all entries instead of a sample")
	pairs = flag.Int("pairs", 2, "how many pairs of engines run at the same time")
)

// Without -full, one of this many entries is run.
const sample = 12

func TestMain(m *testing.M) { kit.Main(m) }

func dialsIn(ns kit.Netns) http.RoundTripper {
	return &http.Transport{DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = ns.Run(func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}}
}

// TestSameAnswers runs each entry on both engines. To run a single one:
//
//	go test ./test/differ -full -run 'TestSameAnswers/run/hostname'
func TestSameAnswers(t *testing.T) {
	c, err := catalogue.Load(os.DirFS("testdata"))
	if err != nil {
		t.Fatal(err)
	}
	used := &usage{}
	// Registered first, so that it runs after all entries.
	t.Cleanup(func() { used.report(t, c) })
	base := bases(t)
	pool := make(chan [2]*side, *pairs)
	for range *pairs {
		pool <- startSides(t, base)
	}
	for _, e := range c.Entries {
		if !*full && !inSample(e) {
			continue
		}
		t.Run(e.Name, func(t *testing.T) {
			t.Parallel()
			sides := <-pool
			defer func() { pool <- sides }()
			var docker, ours outcome
			var both sync.WaitGroup
			both.Go(func() { docker = sides[0].run(t, e) })
			both.Go(func() { ours = sides[1].run(t, e) })
			both.Wait()
			docker.known.Same, ours.known.Same = c.Same, c.Same
			for i, o := range []outcome{docker, ours} {
				if o.err != nil {
					t.Errorf("%s: %s: %v", e.Name, sides[i].title, o.err)
				}
			}
			// A comparison means little if the steps did not end as the author
			// intended.
			for _, a := range docker.astray {
				t.Errorf("%s (%s): docker: %s", e.Name, e.Where, a)
			}
			text := used.differences(e, c, docker, ours)
			// dockerd answers some requests before its own record of them is
			// complete, so its answers are taken up to three times. Those of Holdfast
			// are not: what differs only sometimes is a fault.
			for again := 0; again < 2 && text != "" && docker.err == nil; again++ {
				docker = sides[0].run(t, e)
				docker.known.Same = c.Same
				text = used.differences(e, c, docker, ours)
			}
			used.ran(e)
			if text != "" {
				t.Errorf("%s (%s): docker -, holdfast +\n%s", e.Name, e.Where, text)
			}
		})
	}
}

// inSample selects the same entries each time.
func inSample(e *catalogue.Entry) bool {
	if e.Always {
		return true
	}
	h := fnv.New32a()
	h.Write([]byte(e.Name))
	return h.Sum32()%sample == 0
}

// usage records which reasons have excused a difference.
type usage struct {
	mu      sync.Mutex
	reasons map[string]bool // by file and line
	count   int
}

// differences returns what differs without a reason, as text.
func (u *usage) differences(e *catalogue.Entry, c *catalogue.Catalogue, docker, ours outcome) string {
	var text strings.Builder
	about := ""
	for _, d := range catalogue.Compare(docker.answers, ours.answers, docker.known, ours.known) {
		if u.excused(e, d.Place, c.Everywhere) {
			continue
		}
		if d.About != about {
			about = d.About
			fmt.Fprintf(&text, "%s\n", about)
		}
		fmt.Fprintf(&text, "  %s\n", d.Place)
		for _, l := range d.Lines {
			fmt.Fprintf(&text, "    %s\n", l)
		}
	}
	return text.String()
}

// excused reports whether a reason covers the difference.
func (u *usage) excused(e *catalogue.Entry, place string, everywhere []*catalogue.Reason) bool {
	yes := false
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.reasons == nil {
		u.reasons = map[string]bool{}
	}
	for _, list := range [][]*catalogue.Reason{e.Reasons, everywhere} {
		for _, r := range list {
			if r.Covers(e.Name, place) {
				u.reasons[r.Where] = true
				yes = true
			}
		}
	}
	return yes
}

func (u *usage) ran(e *catalogue.Entry) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.count++
}

// report names reasons that no longer excuse anything. That is known only if
// all entries ran.
func (u *usage) report(t *testing.T, c *catalogue.Catalogue) {
	u.mu.Lock()
	defer u.mu.Unlock()
	t.Logf("%d of %d entries compared", u.count, len(c.Entries))
	if u.count < len(c.Entries) {
		return
	}
	seen := map[string]bool{}
	stale := func(rs []*catalogue.Reason) {
		for _, r := range rs {
			if !r.Sometimes && !u.reasons[r.Where] && !seen[r.Where] {
				seen[r.Where] = true
				t.Errorf("stale: %s: nothing differs any more in %q: remove the reason", r.Where, r.Place)
			}
		}
	}
	for _, e := range c.Entries {
		stale(e.Reasons)
	}
	stale(c.Everywhere)
}
