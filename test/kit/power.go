// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"errors"
	"os"
)

// PowerOff ends the daemon as a loss of power does. Its command must be the first
// process of a process namespace, with which all others end, and must have mount
// and network namespaces of its own. PowerOff removes what a machine does not keep
// over a boot: the exec root and the cgroups. The test removes or replaces the
// data root; without another Start no daemon is started to clean up.
func (d *Daemon) PowerOff() {
	d.t.Helper()
	if d.Running() {
		d.Kill9()
	}
	errs := []error{os.RemoveAll(d.ExecRoot)}
	for _, dir := range d.cgroups() {
		errs = append(errs, removeCgroup(dir))
	}
	if err := errors.Join(errs...); err != nil {
		d.t.Fatal(err)
	}
	d.mu.Lock()
	d.served = false
	d.mu.Unlock()
}
