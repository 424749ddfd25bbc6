// SPDX-License-Identifier: Apache-2.0

package sessions

import (
	"strings"
	"testing"
)

func TestTerminalGoesOnAndEndsWithItsExitCodeWhileNoDaemonLives(t *testing.T) {
	for name, client := range clients {
		for _, rm := range []bool{false, true} {
			title := name
			args := []string{"run", "-it", "--name", "shell"}
			if rm {
				title, args = name+"-rm", append(args, "--rm")
			}
			t.Run(title, func(t *testing.T) {
				t.Parallel()
				d := live(t, nil)
				x := inTerminal(t, client(d, append(args, image, "sh")...))
				x.Shows("# ")
				x.settled(t)
				x.Type("echo be''fore\n")
				x.Shows("before")
				d.Kill9()
				x.Type("echo af''ter\n")
				x.Shows("after")
				x.Resize(40, 100) // no daemon can pass the size on
				x.Type("echo st''ill; echo $((6*7)) >/there; cat /there\n")
				x.Shows("still")
				x.Shows("42")
				x.Type("exit 7\n")
				if code := x.ExitCode(); code != 7 {
					t.Errorf("exit code %d, want 7:\n%s", code, x)
				}
				if d.Running() {
					t.Fatal("a daemon lives")
				}
				d.Start()
				if rm {
					removed(t, d, "shell")
				}
				left := d.Docker("ps", "-a", "--format", "{{.Names}} {{.Status}}")
				if rm && left != "" || !rm && !strings.HasPrefix(left, "shell Exited (7)") {
					t.Errorf("left: %q", left)
				}
			})
		}
	}
}
