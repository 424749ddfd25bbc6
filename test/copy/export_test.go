// SPDX-License-Identifier: Apache-2.0

package copy

import (
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// drivers runs a test with each of the two storage drivers for root file
// systems.
func drivers(t *testing.T, test func(*testing.T, *kit.Daemon)) {
	for _, driver := range []string{"overlay2", "vfs"} {
		t.Run(driver, func(t *testing.T) {
			d := kit.Start(t, kit.Options{LiveRestore: true, Disk: true, Config: map[string]any{"storage-driver": driver}})
			d.Load(image, kit.Busybox(t, nil))
			test(t, d)
		})
	}
}

const alter = `rm /www/index.html /bin/zcat; rm -r /home/app; echo x >> /etc/group; chmod 700 /var; mkdir -p /new/deep; echo y > /new/deep/file
	ln -s /x /new/link; rm -r /tmp; echo file > /tmp; mv /usr /usr2; touch /ready; exec sleep 9999`

const altered = `C /bin
D /bin/zcat
C /etc
C /etc/group
C /home
D /home/app
A /new
A /new/deep
A /new/deep/file
A /new/link
A /ready
C /tmp
D /usr
A /usr2
C /var
A /vol
C /www
D /www/index.html`

func TestDiffTellsWhatAContainerChanged(t *testing.T) {
	drivers(t, func(t *testing.T, d *kit.Daemon) {
		d.Docker("run", "-d", "--name", "box", "-v", "vol:/vol", image, "sh", "-c", alter)
		d.Docker("exec", "box", "sh", "-c", "until [ -e /ready ]; do usleep 1000; done; touch /vol/not-mine")
		if got := d.Docker("diff", "box"); got != altered {
			t.Errorf("running:\n%s\nwant:\n%s", got, altered)
		}
		if got := d.Holdfast("diff", "box"); got != altered {
			t.Errorf("by holdfast:\n%s", got)
		}
		d.Docker("kill", "box")
		if got := d.Docker("diff", "box"); got != altered {
			t.Errorf("stopped:\n%s\nwant:\n%s", got, altered)
		}
		d.Docker("run", "--name", "quiet", image, "true")
		if got := d.Docker("diff", "quiet"); got != "" {
			t.Errorf("diff of an unchanged container: %s", got)
		}
		if r := d.TryDocker("diff", "nobody"); r.Code == 0 || !strings.Contains(r.Stderr, "No such container") {
			t.Errorf("of none: %+v", r)
		}
	})
}

func TestExportGivesTheRootFileSystemWithoutMounts(t *testing.T) {
	drivers(t, func(t *testing.T, d *kit.Daemon) {
		d.Docker("run", "-d", "--name", "box", "-v", "vol:/vol", "--tmpfs", "/mem", image, "sh", "-c", "touch /vol/in /mem/in; "+alter)
		d.Docker("exec", "box", "sh", "-c", "until [ -e /ready ]; do usleep 1000; done")
		check := func(tar string) {
			t.Helper()
			got := entries(t, strings.NewReader(tar))
			if got["new/deep/file"].body != "y\n" || got["usr2/"].Header == nil || got["var/"].Mode != 0o700 {
				t.Errorf("changes are missing: %v", got["new/deep/file"])
			}
			for _, not := range []string{"vol/in", "mem/in", "www/index.html", "usr/", "proc/1/", "dev/null"} {
				if _, ok := got[not]; ok {
					t.Errorf("exported: %s", not)
				}
			}
		}
		check(d.Docker("export", "box") + "\n")
		d.Docker("kill", "box")
		check(d.Holdfast("export", "box") + "\n")
		// An exported file system can be imported, and a container of it runs.
		file := filepath.Join(t.TempDir(), "box.tar")
		d.Docker("export", "-o", file, "box")
		d.Docker("import", "-c", "CMD [\"cat\",\"/new/deep/file\"]", file, "again:test")
		if got := d.Docker("run", "--rm", "again:test"); got != "y" {
			t.Errorf("a container of the imported image printed %q", got)
		}
		if r := d.TryDocker("export", "nobody", "-o", file); r.Code == 0 || !strings.Contains(r.Stderr, "No such container") {
			t.Errorf("of none: %+v", r)
		}
		if told := events(d, "--filter", "event=export", "--format", "{{.Action}}"); told != "export\nexport\nexport" {
			t.Errorf("events: %q", told)
		}
	})
}
