// SPDX-License-Identifier: Apache-2.0

package takeover

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/test/kit"
)

var pauses = regexp.MustCompile(`msg="Handed over" .* pause=([0-9.µms]+)`)

// The pause is logged as a figure. The limit only detects gross errors.
func TestApiPausesShortlyWithFiftyContainers(t *testing.T) {
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(t, nil))
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Go(func() {
			for j := range 10 {
				d.Holdfast("run", "-d", "--name", fmt.Sprintf("w%d-%d", i, j), "-p", "127.0.0.1::80", image, "httpd", "-f", "-h", "/www")
			}
		})
	}
	wg.Wait()
	ctx, stop := contextOf(t)
	ping, list := &loop{}, &loop{}
	c := client(d, false)
	wg.Go(func() { ping.run(ctx, func() error { return call(c, "GET", "http://h/_ping", "") }) })
	wg.Go(func() { list.run(ctx, func() error { return call(c, "GET", "http://h/containers/json", "") }) })
	for range 10 {
		d.Takeover()
	}
	stop()
	wg.Wait()
	if failed := slices.Concat(ping.failed, list.failed); len(failed) > 0 {
		t.Errorf("%d requests failed: %s", len(failed), failed[0])
	}
	var held []time.Duration
	for _, m := range pauses.FindAllStringSubmatch(d.Log(), -1) {
		p, err := time.ParseDuration(m[1])
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, p)
	}
	if len(held) != 10 {
		t.Fatalf("%d takeovers in the log: %s", len(held), strings.Join(pauses.FindAllString(d.Log(), -1), "\n"))
	}
	slices.Sort(held)
	t.Logf("50 containers, 10 takeovers: requests held for %s (median), %s (longest); longest gap in answers seen by a client: ping %s of %d, list %s of %d",
		held[5], held[9], ping.slowest.Round(time.Microsecond), ping.asked, list.slowest.Round(time.Microsecond), list.asked)
	if longest := max(ping.slowest, list.slowest); longest > 3*time.Second {
		t.Errorf("the API paused for %s", longest)
	}
}
