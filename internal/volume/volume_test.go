// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
)

func open(t testing.TB, dir string, users map[string][]string) *Volumes {
	t.Helper()
	v, err := Open(dir, Options{InUse: func(name string) []string { return users[name] }})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func create(t testing.TB, v *Volumes, name string) string {
	t.Helper()
	vol, _, err := v.Create(CreateOptions{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return vol.Mountpoint
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func text(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestVolumeOutlivesTheProcess(t *testing.T) {
	dir := t.TempDir()
	v := open(t, dir, nil)
	vol, created, err := v.Create(CreateOptions{Name: "data", Labels: map[string]string{"a": "b"}})
	if err != nil || !created {
		t.Fatalf("%v, %v", created, err)
	}
	write(t, filepath.Join(vol.Mountpoint, "f"), "x")
	again, created, err := v.Create(CreateOptions{Name: "data", Driver: "local"})
	if err != nil || created || again.CreatedAt != vol.CreatedAt {
		t.Errorf("created again: %+v, %v, %v", again, created, err)
	}
	got, err := open(t, dir, nil).Get("data")
	if err != nil || got.Mountpoint != vol.Mountpoint || got.Labels["a"] != "b" || got.CreatedAt != vol.CreatedAt || got.Driver != "local" || got.Scope != "local" {
		t.Errorf("got %+v, %v", got, err)
	}
	if text(t, filepath.Join(got.Mountpoint, "f")) != "x" {
		t.Error("the contents are lost")
	}
}

func TestVolumeWithoutANameIsAnonymous(t *testing.T) {
	v := open(t, t.TempDir(), nil)
	a, _, err := v.Create(CreateOptions{})
	if err != nil || len(a.Name) != 64 || !Anonymous(a) {
		t.Errorf("got %+v, %v", a, err)
	}
	create(t, v, "named")
	if b, _ := v.Get("named"); Anonymous(b) {
		t.Error("a named volume is anonymous")
	}
	if n := len(v.List()); n != 2 {
		t.Errorf("%d volumes", n)
	}
}

func TestBadArgumentsAreRefusedInDockersWords(t *testing.T) {
	dir := t.TempDir()
	v := open(t, dir, nil)
	create(t, v, "plain")
	for _, c := range []struct {
		name string
		opts CreateOptions
		says string
		kind func(error) bool
	}{
		{"short", CreateOptions{Name: "a"}, "create a: volume name is too short, names should be at least two alphanumeric characters", errdefs.IsInvalidArgument},
		{"path", CreateOptions{Name: "../x"}, `create ../x: "../x" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path`, errdefs.IsInvalidArgument},
		{"dot", CreateOptions{Name: ".creating-x"}, "includes invalid characters", errdefs.IsInvalidArgument},
		{"long", CreateOptions{Name: strings.Repeat("a", 256)}, "is too long", errdefs.IsInvalidArgument},
		{"driver", CreateOptions{Name: "vol", Driver: "sshfs"}, `create vol: error looking up volume plugin sshfs: plugin "sshfs" not found`, errdefs.IsNotFound},
		{"option", CreateOptions{Name: "vol", DriverOpts: map[string]string{"color": "red"}}, `invalid option: "color"`, errdefs.IsInvalidArgument},
		{"device", CreateOptions{Name: "vol", DriverOpts: map[string]string{"type": "tmpfs"}}, `missing required option: "device"`, errdefs.IsInvalidArgument},
		{"quota", CreateOptions{Name: "vol", DriverOpts: map[string]string{"size": "1g"}}, "quota size requested but no quota support", errdefs.IsInvalidArgument},
		{"conflict", CreateOptions{Name: "plain", DriverOpts: map[string]string{"type": "tmpfs", "device": "tmpfs"}}, "already exists with other options", errdefs.IsConflict},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := v.Create(c.opts)
			if err == nil || !strings.Contains(err.Error(), c.says) || !c.kind(err) {
				t.Errorf("got %v", err)
			}
		})
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestVolumeInUseIsNotRemoved(t *testing.T) {
	users := map[string][]string{"data": {"c1"}}
	v := open(t, t.TempDir(), users)
	path := create(t, v, "data")
	err := v.Remove("data")
	if !errdefs.IsConflict(err) || err.Error() != "remove data: volume is in use - [c1]" {
		t.Errorf("in a record: %v", err)
	}
	delete(users, "data")
	if err := v.Restore(map[string][]string{"data": {"c2"}}); err != nil {
		t.Fatal(err)
	}
	if err := v.Remove("data"); !errdefs.IsConflict(err) {
		t.Errorf("running: %v", err)
	}
	if err := v.Unmount("data", "c2"); err != nil {
		t.Fatal(err)
	}
	release, err := v.Hold("data")
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Remove("data"); !errdefs.IsConflict(err) {
		t.Errorf("held: %v", err)
	}
	release()
	release()
	if err := v.Remove("data"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the contents are left")
	}
	for what, err := range map[string]error{
		"remove": v.Remove("data"),
		"copy":   v.CopyUp(t.TempDir(), "/", "data", ""),
		"hold":   func() error { _, err := v.Hold("data"); return err }(),
		"mount":  func() error { _, err := v.Mount(context.Background(), "data", "c"); return err }(),
	} {
		if !errdefs.IsNotFound(err) || err.Error() != "get data: no such volume" {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A name is free before the volume's files are deleted, so that a volume with the
// same name may be created, and removed, meanwhile.
func TestVolumesOfOneNameAreRemovedAtTheSameTime(t *testing.T) {
	dir := t.TempDir()
	v := open(t, dir, nil)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				vol, _, err := v.Create(CreateOptions{Name: "data"})
				if err != nil {
					t.Errorf("create: %v", err)
					return
				}
				for i := range 10 {
					// Another goroutine may have removed the volume.
					_ = os.WriteFile(filepath.Join(vol.Mountpoint, fmt.Sprint(i)), nil, 0o600)
				}
				if err := v.Remove("data"); err != nil && !errdefs.IsNotFound(err) {
					t.Errorf("remove: %v", err)
				}
			}
		})
	}
	all.Wait()
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

func TestWhatACrashLeftIsFinishedAtOpen(t *testing.T) {
	dir := t.TempDir()
	v := open(t, dir, nil)
	create(t, v, "good")
	create(t, v, "half")
	create(t, v, "newer")
	for _, d := range []string{creating + "123/_data", removing + "old/_data"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "half", metaFile), `{"schema":1,"na`)
	write(t, filepath.Join(dir, "newer", metaFile), `{"schema":9}`)
	write(t, filepath.Join(dir, "half", dataDir, "f"), "precious")

	v = open(t, dir, nil)
	if l := v.List(); len(l) != 1 || l[0].Name != "good" {
		t.Errorf("volumes: %v", l)
	}
	says := ""
	for _, err := range v.Broken() {
		says += err.Error() + "\n"
	}
	if len(v.Broken()) != 2 || !strings.Contains(says, filepath.Join(dir, "half", metaFile)) || !strings.Contains(says, "its schema is 9, this release reads up to 1") {
		t.Errorf("broken: %s", says)
	}
	if text(t, filepath.Join(dir, "half", dataDir, "f")) != "precious" {
		t.Error("a broken volume was touched")
	}
	if _, _, err := v.Create(CreateOptions{Name: "half"}); err == nil {
		t.Error("a broken volume was overwritten")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 3 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestCopyUpFillsAnEmptyVolumeOnce(t *testing.T) {
	v := open(t, t.TempDir(), nil)
	root := t.TempDir()
	write(t, filepath.Join(root, "var/www/index.html"), "hello")
	write(t, filepath.Join(root, "var/www/sub/x"), "x")
	if err := os.Symlink("/etc/passwd", filepath.Join(root, "var/www/link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(root, "var/www"), 0o1750); err != nil {
		t.Fatal(err)
	}
	path := create(t, v, "web")
	for range 2 {
		if err := v.CopyUp(root, "/var/www", "web", ""); err != nil {
			t.Fatal(err)
		}
		if text(t, filepath.Join(path, "index.html")) != "hello" || text(t, filepath.Join(path, "sub/x")) != "x" {
			t.Error("not copied")
		}
	}
	if l, err := os.Readlink(filepath.Join(path, "link")); err != nil || l != "/etc/passwd" {
		t.Errorf("link: %s, %v", l, err)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o750 {
		t.Errorf("mode %v", st.Mode())
	}
	// The content of a volume stays.
	full := create(t, v, "full")
	write(t, filepath.Join(full, "mine"), "mine")
	for _, p := range []string{"/var/www", "/no/such", "/var/www/index.html"} {
		if err := v.CopyUp(root, p, "full", ""); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
	if entries, _ := os.ReadDir(full); len(entries) != 1 {
		t.Errorf("in the full volume: %v", entries)
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 2 {
		t.Errorf("left behind: %v", entries)
	}
	if n, err := v.Usage(context.Background(), "web"); err != nil || n < 6 {
		t.Errorf("usage %d, %v", n, err)
	}
}

func TestCopyUpDoesNotLeaveTheImage(t *testing.T) {
	outside := t.TempDir()
	write(t, filepath.Join(outside, "secret"), "secret")
	root := t.TempDir()
	up := strings.Repeat("../", 30)
	for name, target := range map[string]string{"abs": outside, "rel": up + outside[1:]} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	v := open(t, t.TempDir(), nil)
	for _, p := range []string{"/abs", "/rel", up + outside[1:], "/abs/../../" + up + outside[1:]} {
		path := create(t, v, "data")
		if err := v.CopyUp(root, p, "data", ""); err != nil {
			t.Errorf("%s: %v", p, err)
		}
		if entries, _ := os.ReadDir(path); len(entries) != 0 {
			t.Fatalf("%s: %v was copied", p, entries)
		}
	}
	// A link within the image leads where it points.
	write(t, filepath.Join(root, filepath.Join(outside, "own")), "own")
	path := create(t, v, "data")
	if err := v.CopyUp(root, "/abs", "data", ""); err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(path); len(entries) != 1 || entries[0].Name() != "own" {
		t.Errorf("got %v", entries)
	}
}

func TestCopyUpThatCrashedIsFinished(t *testing.T) {
	v := open(t, t.TempDir(), nil)
	root := t.TempDir()
	write(t, filepath.Join(root, "d/a"), "a")
	write(t, filepath.Join(root, "d/b"), "b")
	// As after a crash during the copy: the incomplete copy is discarded.
	path := create(t, v, "one")
	write(t, filepath.Join(filepath.Dir(path), filling, "a"), "hal")
	// As after a crash during the move: one file was moved, the other was not.
	path2 := create(t, v, "two")
	write(t, filepath.Join(path2, "a"), "a")
	write(t, filepath.Join(filepath.Dir(path2), filled, "b"), "b")
	for name, path := range map[string]string{"one": path, "two": path2} {
		if err := v.CopyUp(root, "d", name, ""); err != nil {
			t.Fatal(err)
		}
		if text(t, filepath.Join(path, "a")) != "a" || text(t, filepath.Join(path, "b")) != "b" {
			t.Errorf("%s is not whole", name)
		}
		if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 2 {
			t.Errorf("left behind: %v", entries)
		}
	}
}

func TestNetworkVolumesHostIsResolved(t *testing.T) {
	for _, c := range []struct{ typ, device, o, want string }{
		{"nfs", ":/export", "addr=127.0.0.1,rw", "addr=127.0.0.1,rw"},
		{"nfs4", ":/export", "rw,addr=::1", "rw,addr=::1"},
		{"cifs", "//127.0.0.1/share", "username=u", "username=u,addr=127.0.0.1"},
		{"tmpfs", "tmpfs", "size=1m", "size=1m"},
		{"none", "/x", "bind", "bind"},
	} {
		got, err := resolve(context.Background(), c.typ, c.device, c.o)
		if err != nil || got != c.want {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
	if _, err := resolve(context.Background(), "nfs", ":/x", "addr=host.invalid"); err == nil || !strings.Contains(err.Error(), "error resolving passed in network volume address") {
		t.Errorf("got %v", err)
	}
}
