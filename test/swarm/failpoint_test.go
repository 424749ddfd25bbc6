// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"fmt"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// TestSwarmProcessDiesAtEachEdge kills the swarm process between the steps of a task,
// and the daemon after it. The next processes finish what was begun, once.
func TestSwarmProcessDiesAtEachEdge(t *testing.T) {
	t.Parallel()
	n := start(t, kit.Options{LiveRestore: true})
	containers := func() []string {
		return strings.Fields(n.Docker("ps", "-aq", "--no-trunc", "--filter", "label=com.docker.swarm.task"))
	}
	// arm starts new processes that die at the point, if it is not empty.
	arm := func(point string) {
		n.Kill9()
		if pid := n.process(); pid != 0 {
			kit.Kill(t, pid)
		}
		n.SetEnv("HOLDFAST_FAILPOINT=" + point)
		n.Start()
		kit.Eventually(t, "the manager answers", func() bool { return n.TryDocker("service", "ls").Code == 0 })
	}
	for _, c := range []struct {
		points []string
		begin  func() // before the processes die
		do     func()
		want   int // running tasks
	}{
		{[]string{"task.pulled", "task.created", "task.starting", "task.started"}, nil, func() {
			n.TryDocker("service", "create", "-d", "--name", "web", image, "sh", "-c", trap)
		}, 1},
		{[]string{"task.stopping", "task.removing"}, func() {
			n.Docker("service", "create", "-d", "--name", "web", "--stop-grace-period", "1s", image, "sh", "-c", trap)
			n.await("web", 1)
		}, func() { n.TryDocker("service", "rm", "web") }, 0},
	} {
		for _, point := range c.points {
			t.Run(point, func(t *testing.T) {
				if c.begin != nil {
					c.begin()
				}
				arm(point)
				pid := n.process()
				c.do()
				kit.Eventually(t, "the swarm process dies", func() bool { return n.process() != pid })
				arm("")
				if c.want > 0 {
					n.await("web", c.want)
				}
				kit.Eventually(t, fmt.Sprintf("%d containers are there", c.want), func() bool { return len(containers()) == c.want })
				if c.want > 0 {
					if all := n.taskIDs("web"); len(all) != c.want {
						t.Errorf("tasks: %v", all)
					}
					n.Docker("service", "rm", "web")
					kit.Eventually(t, "the containers are removed", func() bool { return len(containers()) == 0 })
				}
			})
		}
	}
}
