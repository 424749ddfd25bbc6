// SPDX-License-Identifier: Apache-2.0

package failpoint

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

func TestProcessDiesAtItsPointAndNoOther(t *testing.T) {
	if os.Getenv("HOLDFAST_FAILPOINT") != "" {
		Here("another.point")
		Here("the.point")
		return
	}
	for point, dies := range map[string]bool{"the.point": true, "no.point": false} {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), "HOLDFAST_FAILPOINT="+point)
		err := cmd.Run()
		status := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if killed := status.Signaled() && status.Signal() == syscall.SIGKILL; killed != dies {
			t.Errorf("%s: %v", point, err)
		}
	}
	Here("") // an empty name never arms a point
}
