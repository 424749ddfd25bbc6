// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestCommandLineBuildsForSixTargets: the command line is used on other systems
// than the daemon, so everything that it imports must build there.
func TestCommandLineBuildsForSixTargets(t *testing.T) {
	for _, system := range []string{"linux", "darwin", "windows"} {
		for _, machine := range []string{"amd64", "arm64"} {
			// With more than one package go build does not link, which would
			// take most of the time.
			cmd := exec.Command("go", "build", "holdfast/cmd/holdfast", "holdfast/internal/cli")
			cmd.Env = append(os.Environ(), "GOOS="+system, "GOARCH="+machine, "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s/%s: %v\n%s", system, machine, err, strings.TrimSpace(string(out)))
			}
		}
	}
}
