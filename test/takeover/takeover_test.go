// SPDX-License-Identifier: Apache-2.0

// Package takeover tests that a daemon takes over from another one unnoticed by
// clients of the API, streams and containers. It needs root.
package takeover

import (
	"testing"

	"holdfast/test/kit"
)

func TestMain(m *testing.M) { kit.Main(m) }

const image = "busybox:test"

func TestTakeoverKeepsContainersAsTheyAre(t *testing.T) {
	t.Parallel()
	for name, live := range map[string]bool{"live restore on": true, "live restore off": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := kit.Start(t, kit.Options{LiveRestore: live})
			d.Load(image, kit.Busybox(t, nil))
			d.Holdfast("run", "-d", "--name", "web", "-p", "127.0.0.1::80", image, "httpd", "-f", "-h", "/www")
			p := kit.Probe(t, "http://"+d.Holdfast("port", "web", "80/tcp")+"/index.html")
			p.WaitAnswer(t)
			format := "{{.State.Pid}} {{.State.StartedAt}} {{.RestartCount}} {{json .NetworkSettings.Networks}} {{json .NetworkSettings.Ports}}"
			before := d.Holdfast("inspect", "-f", format, "web")
			for range 3 {
				d.Takeover()
				if after := d.Holdfast("inspect", "-f", format, "web"); after != before {
					t.Errorf("\nbefore %s\nafter  %s", before, after)
				}
			}
			if r := p.Stop(); len(r.Failures) > 0 || r.Answered == 0 {
				t.Error(r)
			}
			for _, old := range d.Predecessors() {
				<-old.Exited
				if old.Code != 0 {
					t.Errorf("the old daemon exited with %d", old.Code)
				}
			}
		})
	}
}
