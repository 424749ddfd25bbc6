// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"os"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of the times in /proc/PID/stat (proc(5)).
const tick = 10 * time.Millisecond

// spent is the processor time of an engine's living processes and of the
// children for which they have waited, such as the runtime. On a machine with
// other load it varies less than the time that passes.
func spent(programs []string) time.Duration {
	var sum time.Duration
	for _, pid := range processes(programs) {
		text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			continue // the process has exited
		}
		// The second field, in parentheses, may contain spaces.
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		for _, f := range fields[11:15] {
			n, _ := strconv.Atoi(f)
			sum += time.Duration(n) * tick
		}
	}
	return sum
}
