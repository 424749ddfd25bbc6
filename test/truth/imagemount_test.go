// SPDX-License-Identifier: Apache-2.0

package truth

import (
	"strconv"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

// TestMountOfAnImage: a container can read an image's files as long as the
// container exists, whatever happens to the image's name and to the daemon. It
// can't change them.
func TestMountOfAnImage(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load("busybox", kit.Busybox(t, nil))
	tool := func(body string) v1.Image {
		return kit.Image(t, empty.Image, nil, kit.Layer(t,
			kit.File{Name: "tool/"}, kit.File{Name: "tool/version", Body: []byte(body)},
			kit.File{Name: "out", Link: "/etc"}, kit.File{Name: "up", Link: "../../../etc"}, kit.File{Name: "in", Link: "tool"}))
	}
	d.Load("tool:1", tool("one\n"))
	read := []string{"exec", "box", "cat", "/t/tool/version"}
	d.Docker("run", "-d", "--name", "box", "--restart", "always", "--privileged", "--mount", "type=image,source=tool:1,target=/t", "busybox", "sh", "-c", "while ! [ -e /end ]; do usleep 10000; done; rm /end")
	same(t, "the file", d.Docker(read...), "one")
	if r := d.TryDocker("exec", "box", "sh", "-c", "mount -o remount,rw /t 2>/dev/null; mount -o remount,bind,rw /t 2>/dev/null; echo two > /t/tool/version"); r.Code == 0 {
		t.Error("the container has changed the image")
	}

	d.Docker("rmi", "-f", "tool:1")
	d.Docker("image", "prune", "-f")
	d.Load("tool:1", tool("two\n"))
	// The shim starts a new run while no daemon lives.
	pid, err := strconv.Atoi(d.Docker("inspect", "-f", "{{.State.Pid}}", "box"))
	if err != nil {
		t.Fatal(err)
	}
	d.Docker("exec", "-d", "box", "sh", "-c", "sleep 1; touch /end")
	d.Kill9()
	kit.Eventually(t, "the run's end", func() bool { return unix.Kill(pid, 0) != nil })
	d.Start()
	kit.Eventually(t, "the next run", func() bool {
		return d.Docker("inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "box") == "1 running"
	})
	same(t, "after a restart without a daemon", d.Docker(read...), "one")
	d.Takeover()
	same(t, "after a takeover", d.Docker(read...), "one")
	d.Docker("restart", "-t", "0", "box")
	same(t, "after a restart", d.Docker(read...), "one")
	d.Docker("run", "--rm", "--volumes-from", "box", "busybox", "cat", "/t/tool/version")
	if got := d.Docker("cp", "box:/t/tool/version", "-"); !strings.Contains(got, "one\n") {
		t.Errorf("cp brings %q", got)
	}
	d.Docker("rm", "-f", "box")

	for path, want := range map[string]string{"out": "leads out of the image", "up": "leads out of the image", "tool/none": "no such file"} {
		r := d.TryDocker("run", "--rm", "--mount", "type=image,source=tool:1,target=/t,image-subpath="+path, "busybox", "ls", "/t")
		if r.Code == 0 || !strings.Contains(r.Stderr, want) {
			t.Errorf("%s: exit code %d, %s, want %q", path, r.Code, r.Stderr, want)
		}
	}
	same(t, "a link in the image", d.Docker("run", "--rm", "--mount", "type=image,source=tool:1,target=/t,image-subpath=in", "busybox", "cat", "/t/version"), "two")
}
