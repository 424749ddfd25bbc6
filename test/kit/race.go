// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"os"
	"path/filepath"
)

// raceReports is the variable that lets the daemon, its shims and its clients
// write the data races they find into files of the daemon's root. Only binaries
// that were built with the race detector look at it; "make race" does so.
func (d *Daemon) raceReports() string { return "GORACE=log_path=" + d.Root + "/race" }

// checkRaces fails the test for each process that has reported a data race. Such
// a process runs on, and no test sees a shim's exit status, so the report's file
// is the only sign of it.
func (d *Daemon) checkRaces() {
	d.t.Helper()
	reports, err := filepath.Glob(d.Root + "/race.*")
	if err != nil {
		d.t.Error(err)
	}
	for _, name := range reports {
		report, err := os.ReadFile(name)
		if err != nil {
			d.t.Error(err)
			continue
		}
		d.t.Errorf("data race, in process %s:\n%s", filepath.Ext(name)[1:], report)
	}
}
