// SPDX-License-Identifier: Apache-2.0

package life

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

// Another program unmounts a container's root file system. The container runs on,
// because its own mount namespace has it, and the restart policy restarts it, with
// the files that it has written.
func TestContainerWhoseRootWasUnmountedIsRestartedByItsPolicy(t *testing.T) {
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(t, nil))
	e := engine{d, "holdfast"}
	for _, c := range []struct {
		name string
		kill func(kill func()) // with a daemon or without, which runs afterwards
	}{
		{"with a daemon", func(kill func()) { kill() }},
		{"without", func(kill func()) {
			d.Kill9()
			kill()
			d.Start()
		}},
		{"after a takeover", func(kill func()) {
			d.Takeover()
			kill()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := e.Docker("run", "-d", "--restart", "always", image, "sleep", "1000")
			e.Docker("exec", id, "touch", "/written")
			if err := unix.Unmount(d.ExecRoot+"/shim/"+id+"/bundle/rootfs", unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
			pid := d.Inspect(id).State.Pid
			c.kill(func() { kit.Kill(t, pid) })
			eventually(t, func() (bool, string) {
				s := d.Inspect(id).State
				return s.Status == "running" && s.Pid != pid && s.Pid != 0, fmt.Sprint(s.Status, " ", s.Error)
			})
			e.Docker("exec", id, "ls", "/written")
			e.Docker("rm", "-f", id)
		})
	}
}

// Of a running container whose root file system was unmounted an export, a diff and a
// commit would see an empty folder. They fail, and say what to do.
func TestUnmountedRootIsNotTakenForAnEmptyOne(t *testing.T) {
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(t, nil))
	e := engine{d, "holdfast"}
	id := e.Docker("run", "-d", "--name", "web", image, "sleep", "1000")
	if err := unix.Unmount(d.ExecRoot+"/shim/"+id+"/bundle/rootfs", unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"export", "-o", d.Root + "/out.tar", "web"}, {"diff", "web"}, {"commit", "web", "empty:1"}} {
		r := d.TryHoldfast(args...)
		if r.Code == 0 || !strings.Contains(r.Stderr, "was unmounted by another program: restart the container") {
			t.Errorf("%v: %+v", args, r)
		}
	}
	e.Docker("restart", "-t", "0", "web")
	for _, args := range [][]string{{"export", "-o", d.Root + "/out.tar", "web"}, {"diff", "web"}, {"commit", "web", "whole:1"}} {
		if r := d.TryHoldfast(args...); r.Code != 0 {
			t.Errorf("after the restart: %v: %+v", args, r)
		}
	}
}
