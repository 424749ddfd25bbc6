// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"net"
	"testing"
)

// At shutdown the bus ends before the daemon. If no firewalld has ever answered,
// nothing has to be removed, and there is no reason for a warning.
func TestNothingIsForgottenWhereNoFirewalldWasMet(t *testing.T) {
	path := t.TempDir() + "/bus"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close() // a bus that is about to end
		}
	}()
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+path)
	var f Firewalld
	if _, err := f.Admit(t.Context(), []string{"br0"}); err == nil {
		t.Error("a bus that ends at once is no error for the one who needs it")
	}
	if err := f.Forget(t.Context(), "br0"); err != nil {
		t.Error(err)
	}
}
