// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"strings"
	"testing"
)

func TestContainerGoesOnWhileTheDaemonIsDeadAndIsCleanedUp(t *testing.T) {
	d := Start(t, Options{LiveRestore: true})
	d.Load("busybox:test", Busybox(t, nil))
	d.Docker("run", "-d", "--name", "web", "-p", "127.0.0.1::80", "busybox:test", "httpd", "-f", "-h", "/www")
	address := strings.TrimSpace(d.Docker("port", "web", "80/tcp"))
	const state = "{{.State.Pid}} {{.State.StartedAt}} {{.RestartCount}}"
	before := d.Docker("inspect", "-f", state, "web")

	p := Probe(t, "http://"+address+"/index.html")
	p.WaitAnswer(t)
	d.Kill9()
	d.Start()
	d.Restart()
	if after := d.Docker("inspect", "-f", state, "web"); after != before {
		t.Errorf("was %s, is %s", before, after)
	}
	if r := p.Stop(); len(r.Failures) > 0 || r.Answered == 0 {
		t.Error(r)
	} else {
		t.Log(r)
	}
	// The container is left to the kit's cleanup, which must find no leak.
}
