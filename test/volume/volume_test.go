// SPDX-License-Identifier: Apache-2.0

// Package volume tests, as root, what volumes mount and how they are copied.
package volume

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"holdfast/internal/volume"
)

// tree is a directory for volumes. The test fails if a file system remains
// mounted there.
func tree(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test mounts: run it as root")
	}
	dir := t.TempDir()
	t.Cleanup(func() {
		infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
		if err != nil {
			t.Error(err)
		}
		for i := len(infos) - 1; i >= 0; i-- {
			if err := unix.Unmount(infos[i].Mountpoint, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", infos[i].Mountpoint, err)
			}
		}
	})
	return dir
}

func open(t *testing.T, dir string) *volume.Volumes {
	t.Helper()
	v, err := volume.Open(dir, volume.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func create(t *testing.T, v *volume.Volumes, name, typ, device, o string) string {
	t.Helper()
	opts := map[string]string{"type": typ, "device": device}
	if o != "" {
		opts["o"] = o
	}
	vol, _, err := v.Create(volume.CreateOptions{Name: name, DriverOpts: opts})
	if err != nil {
		t.Fatal(err)
	}
	return vol.Mountpoint
}

func mount(t *testing.T, v *volume.Volumes, name, ref string) {
	t.Helper()
	if _, err := v.Mount(context.Background(), name, ref); err != nil {
		t.Fatal(err)
	}
}

func mounts(t *testing.T, path string) int {
	t.Helper()
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(path))
	if err != nil {
		t.Fatal(err)
	}
	return len(infos)
}

func TestOptionsAreMountedFromTheFirstUserToTheLast(t *testing.T) {
	v := open(t, tree(t))
	path := create(t, v, "mem", "tmpfs", "tmpfs", "size=1m,mode=0700")
	if mounts(t, path) != 0 {
		t.Fatal("mounted before it is used")
	}
	mount(t, v, "mem", "a")
	mount(t, v, "mem", "b")
	mount(t, v, "mem", "b")
	if n := mounts(t, path); n != 1 {
		t.Fatalf("%d mounts", n)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC || int64(fs.Blocks)*fs.Bsize != 1<<20 {
		t.Errorf("%+v, %v", fs, err)
	}
	v.Unmount("mem", "a")
	if mounts(t, path) != 1 {
		t.Fatal("unmounted under a user")
	}
	if err := v.Unmount("mem", "b"); err != nil || mounts(t, path) != 0 {
		t.Fatalf("%d mounts, %v", mounts(t, path), err)
	}
}

func TestMountsAreTakenOverFromTheDaemonBefore(t *testing.T) {
	dir := tree(t)
	v := open(t, dir)
	used := create(t, v, "used", "tmpfs", "tmpfs", "")
	unused := create(t, v, "unused", "tmpfs", "tmpfs", "")
	mount(t, v, "used", "a")
	mount(t, v, "unused", "b")
	if err := os.WriteFile(filepath.Join(used, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The daemon is killed, and container b ends meanwhile.
	v = open(t, dir)
	if err := v.Restore(map[string][]string{"used": {"a"}}); err != nil {
		t.Fatal(err)
	}
	mount(t, v, "used", "c")
	if mounts(t, used) != 1 || mounts(t, unused) != 0 {
		t.Errorf("%d and %d mounts", mounts(t, used), mounts(t, unused))
	}
	if _, err := os.Stat(filepath.Join(used, "f")); err != nil {
		t.Error(err)
	}
	v.Unmount("used", "a")
	v.Unmount("used", "c")
	if mounts(t, used) != 0 {
		t.Error("left mounted")
	}
}

func TestRemovalNeverDeletesWhatIsBoundIn(t *testing.T) {
	dir := tree(t)
	host := t.TempDir()
	file := filepath.Join(host, "precious")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	v := open(t, dir)
	path := create(t, v, "host", "none", host, "bind")
	mount(t, v, "host", "a")
	if _, err := os.Stat(filepath.Join(path, "precious")); err != nil {
		t.Fatal(err)
	}
	// A new daemon that does not know of the mount.
	v = open(t, dir)
	if err := v.Remove("host"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	// A removal that crashed while the volume was still mounted.
	create(t, v, "host", "none", host, "bind")
	mount(t, v, "host", "a")
	if err := os.Rename(filepath.Join(dir, "host"), filepath.Join(dir, ".removing-host")); err != nil {
		t.Fatal(err)
	}
	v = open(t, dir)
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 || len(v.Broken()) != 0 {
		t.Errorf("left: %v, %v", entries, v.Broken())
	}
}

func TestMountThatFailsSaysWhyAndLeavesNothing(t *testing.T) {
	v := open(t, tree(t))
	create(t, v, "bad", "none", "/no/such/folder", "bind")
	_, err := v.Mount(context.Background(), "bad", "a")
	if err == nil || !strings.Contains(err.Error(), "failed to mount local volume bad: mount /no/such/folder") || !strings.Contains(err.Error(), "no such file or directory") {
		t.Errorf("got %v", err)
	}
	if err := v.Remove("bad"); err != nil {
		t.Errorf("a failed mount keeps the volume in use: %v", err)
	}
}

func TestCopyUpKeepsOwnersModesAttributesLinksAndDevices(t *testing.T) {
	v := open(t, tree(t))
	root := t.TempDir()
	src := filepath.Join(root, "data")
	if err := os.MkdirAll(filepath.Join(src, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(src, "f"), []byte("x"), 0o600))
	must(os.Chown(filepath.Join(src, "f"), 1234, 5678))
	must(os.Chmod(filepath.Join(src, "f"), os.ModeSetuid|0o711))
	must(unix.Setxattr(filepath.Join(src, "f"), "trusted.test", []byte("v"), 0))
	must(os.Link(filepath.Join(src, "f"), filepath.Join(src, "sub", "same")))
	must(os.Symlink("../../../etc", filepath.Join(src, "sub", "link")))
	must(unix.Mkfifo(filepath.Join(src, "fifo"), 0o640))
	must(unix.Mknod(filepath.Join(src, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(os.Chown(src, 33, 44))
	must(os.Chmod(src, 0o770))

	for _, name := range []string{"plain", "mem"} {
		t.Run(name, func(t *testing.T) {
			if name == "mem" {
				create(t, v, name, "tmpfs", "tmpfs", "")
			} else if _, _, err := v.Create(volume.CreateOptions{Name: name}); err != nil {
				t.Fatal(err)
			}
			mount(t, v, name, "a")
			must(v.CopyUp(root, "/data", name, ""))
			path, err := v.Path(name)
			must(err)
			stat := func(p string) (st unix.Stat_t) {
				t.Helper()
				must(unix.Lstat(filepath.Join(path, p), &st))
				return st
			}
			if st := stat(""); st.Uid != 33 || st.Gid != 44 || st.Mode&0o7777 != 0o770 {
				t.Errorf("the folder: %d:%d %o", st.Uid, st.Gid, st.Mode)
			}
			if st := stat("f"); st.Uid != 1234 || st.Gid != 5678 || st.Mode&0o7777 != 0o4711 || st.Nlink != 2 || st.Ino != stat("sub/same").Ino {
				t.Errorf("the file: %+v", st)
			}
			b := make([]byte, 8)
			if n, err := unix.Getxattr(filepath.Join(path, "f"), "trusted.test", b); err != nil || string(b[:n]) != "v" {
				t.Errorf("the attribute: %q, %v", b, err)
			}
			if l, err := os.Readlink(filepath.Join(path, "sub", "link")); err != nil || l != "../../../etc" {
				t.Errorf("the link: %s, %v", l, err)
			}
			if st := stat("fifo"); st.Mode&unix.S_IFMT != unix.S_IFIFO {
				t.Errorf("the fifo: %o", st.Mode)
			}
			if st := stat("null"); st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
				t.Errorf("the device: %o", st.Mode)
			}
			must(v.Unmount(name, "a"))
		})
	}
}
