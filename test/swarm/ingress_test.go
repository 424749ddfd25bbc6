// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"holdfast/internal/network/dump"
	"holdfast/test/kit"
)

// who is a program that answers HTTP with the name of its host and the address of its
// client.
const who = "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\necho; echo; echo $(cat /etc/hostname) $REMOTE_ADDR\\n' > /www/cgi-bin/who; chmod +x /www/cgi-bin/who; exec httpd -f -p 80 -h /www"

// ask asks that program at an address, from a namespace. It returns what it says, or
// the error.
func ask(from kit.Netns, addr string) string {
	var answer string
	err := from.Run(func() error {
		c, err := net.DialTimeout("tcp", addr, 3*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err := io.WriteString(c, "GET /cgi-bin/who HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
		text, err := io.ReadAll(c)
		answer = string(text)
		return err
	})
	if err != nil {
		return err.Error()
	}
	_, body, _ := strings.Cut(answer, "\r\n")
	return strings.TrimSpace(body)
}

func TestPublishedPortIsOpenOnEveryNodeAndShowsTheClient(t *testing.T) {
	t.Parallel()
	h := wired(t, 3) // the last one is no node
	m := h.manager()
	w := h.worker(1, m)
	there := w.Docker("info", "-f", "{{.Swarm.NodeID}}")
	m.Docker("service", "create", "-d", "--name", "web", "--constraint", "node.id=="+there, "--hostname", "web{{.Task.Slot}}", "-p", "8080:80", image, "sh", "-c", who)
	m.await("web", 1)
	client := h.all[2]
	for i, name := range []string{"manager, which has no task", "worker"} {
		kit.Eventually(t, "the port is open on the "+name, func() bool { return strings.HasPrefix(ask(client, address(i)+":8080"), "web1") })
		if got, want := ask(client, address(i)+":8080"), "web1 [::ffff:"+address(2)+"]"; got != want {
			t.Errorf("by the %s the task answers %q, want %q", name, got, want)
		}
	}
	if got := m.Docker("service", "ls", "--format", "{{.Ports}}"); !strings.Contains(got, "*:8080->80/tcp") {
		t.Errorf("service ls shows the ports %q", got)
	}

	// The same while nothing lives.
	before := fmt.Sprint(m.lives(), w.lives())
	for _, n := range []*node{m, w} {
		pid := n.process()
		n.Kill9()
		kit.Kill(t, pid)
	}
	for i := range 2 {
		if got, want := ask(client, address(i)+":8080"), "web1 [::ffff:"+address(2)+"]"; got != want {
			t.Errorf("while no process lives the task answers %q, want %q", got, want)
		}
	}
	m.Start()
	w.Start()
	pace := time.NewTicker(50 * time.Millisecond)
	defer pace.Stop()
	for range 50 {
		for i := range 2 {
			if got := ask(client, address(i)+":8080"); !strings.HasPrefix(got, "web1") {
				t.Errorf("after the start the task answers %q", got)
			}
		}
		<-pace.C
	}
	kit.Eventually(t, "both nodes are ready", func() bool {
		return strings.Count(m.TryDocker("node", "ls", "--format", "{{.Status}}").Stdout, "Ready") == 2
	})
	if after := fmt.Sprint(m.lives(), w.lives()); after != before {
		t.Errorf("containers before\n%s\nand after\n%s", before, after)
	}

	// A task elsewhere, and none at all.
	m.Docker("service", "update", "-d", "--constraint-rm", "node.id=="+there, "--constraint-add", "node.id!="+there, "web")
	kit.Eventually(t, "the task has moved", func() bool { return len(w.lives()) == 0 && len(m.running("web")) == 1 })
	for i := range 2 {
		kit.Eventually(t, "the port is open", func() bool { return strings.HasPrefix(ask(client, address(i)+":8080"), "web1") })
	}
	m.Docker("service", "rm", "web")
	for i := range 2 {
		kit.Eventually(t, "the port is closed", func() bool { return strings.Contains(ask(client, address(i)+":8080"), "refused") })
	}

	// A host that leaves has nothing left of the swarm's networks.
	w.Docker("swarm", "leave")
	h.must(h.all[1].Run(func() error {
		if _, err := netlink.LinkByName("hf-ingress"); err == nil {
			t.Error("the interface of the routing mesh is left")
		}
		rules, err := dump.Whole(func() ([]netlink.Rule, error) { return netlink.RuleList(netlink.FAMILY_V4) })
		if err == nil && len(rules) != 3 {
			t.Errorf("routing rules are left: %v", rules)
		}
		return err
	}))
	for _, pattern := range []string{w.ExecRoot + "/overlay/*", w.DataRoot + "/swarm/*"} {
		if left, err := filepath.Glob(pattern); err != nil || len(left) > 0 {
			t.Errorf("left of the swarm: %v %v", left, err)
		}
	}
	if got := w.Docker("network", "ls", "--format", "{{.Name}}"); got != "bridge\nhost\nnone" {
		t.Errorf("networks of a host that has left: %q", got)
	}
}

// updated is a client that writes each failed request while a service is updated, by the
// name of its virtual address and by that of its tasks.
const updated = "until [ -f /at/go ]; do usleep 10000; done; " +
	"while [ ! -f /at/end ]; do for name in web tasks.web; do timeout 5 wget -qO/dev/null http://$name/ && echo . >> /at/ok || echo $name $(date +%s) >> /at/failed; done; done; exec sleep 1000"

// page is what the updated service answers.
const page = "hello"

func TestUpdateLosesNoRequest(t *testing.T) {
	t.Parallel()
	for _, order := range []string{"start-first", "stop-first"} {
		t.Run(order, func(t *testing.T) {
			t.Parallel()
			h := wired(t, 2) // the last one is no node
			m := h.manager()
			dir := t.TempDir()
			m.Docker("network", "create", "-d", "overlay", "over")
			// httpd of busybox ends at once on SIGTERM, so a connection that is open
			// then would be lost: the trap lets it end its work.
			program := "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\necho; echo; echo " + page + "\\n' > /www/cgi-bin/who; chmod +x /www/cgi-bin/who; cp /www/cgi-bin/who /www/index.html; httpd -p 80 -h /www; trap 'usleep 300000; exit' TERM; while :; do usleep 50000; done"
			m.Docker("service", "create", "-d", "--name", "web", "--network", "over", "-p", "8080:80", "--replicas", "3", "--update-order", order, "--update-monitor", "1s", "--health-cmd", "wget -qO/dev/null http://127.0.0.1/",
				"--health-interval", "200ms", image, "sh", "-c", program)
			m.Docker("service", "create", "-d", "--name", "client", "--network", "over", "--mount", "type=bind,source="+dir+",target=/at", image, "sh", "-c", updated)
			m.await("web", 3)
			m.await("client", 1)
			outside := func() string { return ask(h.all[1], address(0)+":8080") }
			kit.Eventually(t, "the port is open", func() bool { return outside() == page })
			if err := os.WriteFile(dir+"/go", nil, 0o600); err != nil {
				t.Fatal(err)
			}
			updated := make(chan struct{})
			answers := make(chan map[string]int)
			var outer atomic.Int32 // requests of the client outside
			go func() {
				all := map[string]int{}
				defer func() { answers <- all }()
				for {
					select {
					case <-updated:
						return
					default:
						all[outside()]++
						outer.Add(1)
					}
				}
			}()
			m.Docker("service", "update", "-d", "--env-add", "V=2", "web")
			kit.Eventually(t, "the service is updated", func() bool {
				return m.Docker("service", "inspect", "web", "-f", "{{with .UpdateStatus}}{{.State}}{{end}}") == "completed" // none until the update begins
			})
			// A slow machine has asked a few times only.
			kit.Eventually(t, "both clients have asked", func() bool {
				st, err := os.Stat(dir + "/ok")
				return err == nil && st.Size() >= 20 && outer.Load() >= 20
			})
			close(updated)
			if all := <-answers; len(all) != 1 || all[page] < 20 {
				t.Errorf("the answers to a client outside were %v", all)
			}
			if err := os.WriteFile(dir+"/end", nil, 0o600); err != nil {
				t.Fatal(err)
			}
			ok, err := os.ReadFile(dir + "/ok")
			if err != nil {
				t.Error(err)
			}
			if failed, err := os.ReadFile(dir + "/failed"); err == nil {
				t.Errorf("of %d requests these failed:\n%s", len(ok)/2, failed)
			}
			m.Docker("service", "rm", "web", "client")
			kit.Eventually(t, "the containers are removed", func() bool { return m.Docker("ps", "-aq") == "" })
		})
	}
}
