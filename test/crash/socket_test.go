// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"os"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// The daemon and the listening socket are gone, so the next daemon must create
// a new socket. A container that bind-mounts the old one must reach the new
// one.
func TestContainerThatHasBoundTheSocketReachesTheNextDaemon(t *testing.T) {
	t.Parallel()
	d := live(t)
	id := d.Holdfast("run", "-d", "--name", "portainer", "-v", kit.Binary(t, "holdfast")+":/bin/holdfast:ro",
		"-v", d.Socket+":/var/run/docker.sock", "-v", d.Socket+":/srv/read-only.sock:ro", image, "sleep", "1000")
	before := identity(t, d, "portainer")
	paths := []string{"/var/run/docker.sock", "/srv/read-only.sock"}
	ask := func() {
		t.Helper()
		for _, path := range paths {
			if got := d.Holdfast("exec", "portainer", "holdfast", "-H", "unix://"+path, "ps", "-q", "--no-trunc"); got != id {
				t.Errorf("asked at %s: %q", path, got)
			}
		}
	}
	ask()
	for range 3 {
		was, err := os.Stat(d.Socket)
		if err != nil {
			t.Fatal(err)
		}
		d.Kill9()
		d.Start()
		if is, err := os.Stat(d.Socket); err != nil || os.SameFile(was, is) {
			t.Fatalf("the socket still belongs to the killed daemon: %v", err)
		}
		ask()
	}
	mounts := d.Holdfast("exec", "portainer", "cat", "/proc/self/mountinfo")
	for _, path := range paths {
		path = strings.TrimPrefix(path, "/var") // /var/run is a symbolic link in the image
		var at []string
		for line := range strings.Lines(mounts) {
			if strings.HasSuffix(strings.Fields(line)[4], path) {
				at = append(at, line)
			}
		}
		if len(at) != 1 || strings.Contains(path, "read-only") != strings.HasPrefix(strings.Fields(at[0])[5], "ro") {
			t.Errorf("mounts at %s: %q", path, at)
		}
	}
	if after := identity(t, d, "portainer"); after != before {
		t.Errorf("was %s\nis  %s", before, after)
	}

	// If the container has unmounted the socket, the daemon does not mount it
	// again.
	d.Holdfast("run", "-d", "--name", "own", "--privileged", "-v", d.Socket+":/srv/docker.sock", image, "sleep", "1000")
	d.Holdfast("exec", "own", "umount", "/srv/docker.sock")
	d.Kill9()
	d.Start()
	if got := d.Holdfast("exec", "own", "stat", "-c", "%F", "/srv/docker.sock"); got != "regular empty file" {
		t.Errorf("the path that the container has unmounted is a %s", got)
	}
}
