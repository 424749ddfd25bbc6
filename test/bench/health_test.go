// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Rows of health checks.
const (
	rowHealth  = "processor time of 1,000 health checks (s)"
	rowExecCPU = "processor time of 1,000 bare `runc exec` with the same command (s)"
)

// measureHealth measures the processor time of health checks: of the engine's
// processes, the runtime's and the checks' own.
func measureHealth(t *testing.T, s scale, table *table, subjects []*subject) {
	const containers = 5
	command := []string{"sh", "-c", "echo >>/count/checks"}
	for _, x := range subjects {
		dir := tempDir(t)
		defer os.RemoveAll(dir)
		checks := func() int64 {
			st, err := os.Stat(dir + "/checks")
			if err != nil {
				return 0
			}
			return st.Size()
		}
		for range containers {
			x.ids = append(x.ids, x.api.started(t, map[string]any{
				"Image": imageRef, "Cmd": []string{"sleep", "100000"}, "StopSignal": "SIGKILL",
				"Healthcheck": map[string]any{"Test": append([]string{"CMD"}, command...), "Interval": time.Second},
				"HostConfig":  map[string]any{"Binds": []string{dir + ":/count"}},
			}))
		}
		if t.Failed() {
			return
		}
		used, before := spent(x.programs()), checks()
		<-time.After(time.Duration(s.few) * 7 * time.Second)
		n := checks() - before
		if n == 0 {
			t.Errorf("%s: no health check was run", x.name())
			return
		}
		table.set(rowHealth, x.name(), (spent(x.programs())-used).Seconds()*1000/float64(n))
		if h, ok := x.engine.(*holdfast); ok {
			var own []time.Duration
			for range 10 * s.few {
				begin := children()
				h.bareExec(x.ids[0], command...)
				own = append(own, children()-begin)
			}
			table.set(rowExecCPU, x.name(), median(own).Seconds()*1000)
		}
		x.api.removeAll()
		x.ids = nil
	}
}

// children is the processor time of this process's children that have ended.
func children() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_CHILDREN, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
