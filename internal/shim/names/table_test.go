// SPDX-License-Identifier: Apache-2.0

package names

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

// TestNetworkWhoseFileIsUnreadableKeepsItsNames: otherwise they would be asked of
// the servers outside.
func TestNetworkWhoseFileIsUnreadableKeepsItsNames(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "net.json")
	write := func(path string, v any) {
		t.Helper()
		b, err := json.Marshal(v)
		if err == nil {
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	network := func(address string) Network {
		return Network{Name: "blue", Members: []Member{{Name: "web", Addresses: []string{address}}}}
	}
	tab := table{path: filepath.Join(dir, "view.json")}
	write(tab.path, View{Networks: []string{file}})
	write(file, network("10.1.2.3"))
	is := func(want string) {
		t.Helper()
		got := tab.lookup("web", false)
		addrs, known := got.addrs, got.known
		if want == "" {
			if known {
				t.Errorf("a removed network is known: %v", addrs)
			}
			return
		}
		if !known || len(addrs) != 1 || addrs[0] != netip.MustParseAddr(want) {
			t.Errorf("%v, %v, want %s", addrs, known, want)
		}
	}
	is("10.1.2.3")
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	is("10.1.2.3")
	write(file, network("10.1.2.40"))
	is("10.1.2.40")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	write(tab.path, View{Networks: []string{file}, Upstream: []string{"10.0.0.53:53"}})
	is("")
}
