// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"holdfast/internal/image"
)

func TestImageOfSixtyLayersIsMounted(t *testing.T) {
	reg := newRegistry(t)
	var layers []v1.Layer
	for i := range 60 {
		layers = append(layers, layerOf(t, file{name: fmt.Sprintf("layer-%02d", i), body: "x"}, file{name: "last", body: fmt.Sprint(i)}))
	}
	reg.push("deep:1", imageOf(t, "linux/amd64", layers...))
	s := newStore(t, nil)
	pull(t, s, reg.ref("deep:1"))
	_, mnt := mounted(t, s, reg.ref("deep:1"))
	files, err := filepath.Glob(filepath.Join(mnt, "layer-*"))
	must(t, err)
	if len(files) != 60 || read(t, filepath.Join(mnt, "last")) != "59" {
		t.Errorf("%d files, the last from layer %q", len(files), read(t, filepath.Join(mnt, "last")))
	}
}

func TestNativeDriverCopiesAndMountsTheSame(t *testing.T) {
	reg := newRegistry(t)
	reg.push("native:1", imageOf(t, "linux/amd64",
		layerOf(t, file{name: "a", body: "a"}, file{name: "b", body: "b"}),
		layerOf(t, file{name: ".wh.a"}, file{name: "c", body: "c", mode: 0o4755})))
	s := newStore(t, func(o *image.Options) { o.Snapshotter = "vfs" })
	if s.Driver() != "native" {
		t.Fatalf("driver %s", s.Driver())
	}
	pull(t, s, reg.ref("native:1"))
	dir, mnt := mounted(t, s, reg.ref("native:1"))
	if read(t, filepath.Join(mnt, "b"))+read(t, filepath.Join(mnt, "c")) != "bc" {
		t.Error("the copy differs from the image")
	}
	if st, err := os.Stat(filepath.Join(mnt, "c")); err != nil || st.Mode()&os.ModeSetuid == 0 {
		t.Errorf("mode of c: %v %v", st.Mode(), err)
	}
	if _, err := os.Stat(filepath.Join(mnt, "a")); !os.IsNotExist(err) {
		t.Errorf("a: %v", err)
	}
	before, err := s.RootfsUsage(dir)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(mnt, "new"), []byte(noise(100_000)), 0o600))
	after, err := s.RootfsUsage(dir)
	must(t, err)
	if after-before < 100_000 {
		t.Errorf("usage went from %d to %d", before, after)
	}
	_, other := mounted(t, s, reg.ref("native:1"))
	if _, err := os.Stat(filepath.Join(other, "new")); !os.IsNotExist(err) {
		t.Errorf("a file that one container wrote exists in another: %v", err)
	}
}

func TestContainersKeepTheDriverThatTheyWereMadeWith(t *testing.T) {
	reg := newRegistry(t)
	reg.push("both:1", imageOf(t, "linux/amd64", layerOf(t, file{name: "a", body: "a"})))
	ctx := context.Background()
	base := tempDir(t)
	root, dir, mnt := filepath.Join(base, "images"), filepath.Join(base, "c"), filepath.Join(base, "mnt")
	s, err := image.Open(ctx, image.Options{Root: root, Snapshotter: "overlay2"})
	must(t, err)
	must(t, s.PinSnapshots(ctx, nil))
	pull(t, s, reg.ref("both:1"))
	img, err := s.Resolve(ctx, reg.ref("both:1"), nil)
	must(t, err)
	must(t, s.PrepareRootfs(ctx, img, dir))
	must(t, s.Close())

	s = openStore(t, root, func(o *image.Options) { o.Snapshotter = "native" })
	must(t, s.MountRootfs(ctx, img.Snapshot, img.Storage, dir, mnt, false))
	if read(t, filepath.Join(mnt, "a")) != "a" {
		t.Error("the overlay of the old driver has changed")
	}
	// A new container uses the new driver. Its layers are unpacked again when
	// needed.
	_, fresh := mounted(t, s, reg.ref("both:1"))
	if read(t, filepath.Join(fresh, "a")) != "a" {
		t.Error("the copy differs from the image")
	}
}

func TestRootfsStepsMayBeRepeatedAndUndone(t *testing.T) {
	reg := newRegistry(t)
	reg.push("again:1", imageOf(t, "linux/amd64", layerOf(t, file{name: "a", body: "a"})))
	s := newStore(t, nil)
	pull(t, s, reg.ref("again:1"))
	ctx := context.Background()
	img, err := s.Resolve(ctx, reg.ref("again:1"), nil)
	must(t, err)
	base := tempDir(t)
	dir, mnt := filepath.Join(base, "c"), filepath.Join(base, "mnt")
	for range 3 {
		must(t, s.PrepareRootfs(ctx, img, dir))
		must(t, s.MountRootfs(ctx, img.Snapshot, img.Storage, dir, mnt, false))
	}
	var st unix.Stat_t
	must(t, unix.Stat(mnt, &st))
	if st.Mode&0o7777 != 0o755 || st.Uid != 0 {
		t.Errorf("root directory has mode %o and owner %d, so some users in the container can't enter it", st.Mode&0o7777, st.Uid)
	}
	must(t, os.WriteFile(filepath.Join(mnt, "mine"), []byte("kept"), 0o600))
	must(t, s.UnmountRootfs(mnt))
	must(t, s.UnmountRootfs(mnt))
	must(t, s.PrepareRootfs(ctx, img, dir))
	must(t, s.MountRootfs(ctx, img.Snapshot, img.Storage, dir, mnt, false))
	if read(t, filepath.Join(mnt, "mine")) != "kept" {
		t.Error("the second call of Prepare lost the container's files")
	}
	must(t, s.UnmountRootfs(mnt))
	must(t, s.MountRootfs(ctx, img.Snapshot, img.Storage, dir, mnt, true))
	if _, err := os.Stat(filepath.Join(mnt, "mine")); !os.IsNotExist(err) {
		t.Error("the read-only mount shows the writable layer")
	}
	if err := os.WriteFile(filepath.Join(mnt, "x"), nil, 0o600); err == nil {
		t.Error("a read-only mount could be written")
	}
	must(t, s.UnmountRootfs(mnt))
	must(t, s.RemoveRootfs(ctx, dir))
	must(t, s.RemoveRootfs(ctx, dir))
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s: %v", dir, err)
	}
}

func TestRemovalTakesImmutableFilesToo(t *testing.T) {
	reg := newRegistry(t)
	reg.push("locked:1", imageOf(t, "linux/amd64", layerOf(t, file{name: "a"})))
	s := newStore(t, nil)
	pull(t, s, reg.ref("locked:1"))
	dir, mnt := mounted(t, s, reg.ref("locked:1"))
	f, err := os.Create(filepath.Join(dir, "upper", "locked"))
	must(t, err)
	const immutable = 0x10
	must(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, immutable))
	must(t, f.Close())
	must(t, s.UnmountRootfs(mnt))
	must(t, s.RemoveRootfs(context.Background(), dir))
}

func TestUnmountedRootfsAloneIsRemoved(t *testing.T) {
	reg := newRegistry(t)
	reg.push("busy:1", imageOf(t, "linux/amd64", layerOf(t, file{name: "a"})))
	s := newStore(t, nil)
	pull(t, s, reg.ref("busy:1"))
	ctx := context.Background()
	img, err := s.Resolve(ctx, reg.ref("busy:1"), nil)
	must(t, err)
	dir := filepath.Join(tempDir(t), "c")
	must(t, s.PrepareRootfs(ctx, img, dir))
	mnt := filepath.Join(dir, "rootfs")
	must(t, s.MountRootfs(ctx, img.Snapshot, img.Storage, dir, mnt, false))
	wants(t, s.RemoveRootfs(ctx, dir), errdefs.IsConflict, "is still mounted")
	must(t, s.UnmountRootfs(mnt))
	must(t, os.Remove(mnt))
	must(t, s.RemoveRootfs(ctx, dir))
}

func TestCollectorKeepsWhatContainersStandOn(t *testing.T) {
	reg := newRegistry(t)
	reg.push("keep:1", imageOf(t, "linux/amd64", layerOf(t, file{name: "a", body: "a"}), layerOf(t, file{name: "b", body: "b"})))
	ctx := context.Background()
	base := tempDir(t)
	root, dir, mnt := filepath.Join(base, "images"), filepath.Join(base, "c"), filepath.Join(base, "mnt")
	s, err := image.Open(ctx, image.Options{Root: root, Snapshotter: "overlay2"})
	must(t, err)
	wants(t, s.Collect(ctx), errdefs.IsFailedPrecondition, "waits until the containers' layers are known")
	must(t, s.PinSnapshots(ctx, nil))
	pull(t, s, reg.ref("keep:1"))
	img, err := s.Resolve(ctx, reg.ref("keep:1"), nil)
	must(t, err)
	must(t, s.PrepareRootfs(ctx, img, dir))
	must(t, s.MountRootfs(ctx, img.Snapshot, img.Storage, dir, mnt, false))
	_, err = s.Remove(ctx, reg.ref("keep:1"), true, true, nil)
	must(t, err)
	must(t, s.Collect(ctx))
	check := func() {
		t.Helper()
		if read(t, filepath.Join(mnt, "a"))+read(t, filepath.Join(mnt, "b")) != "ab" {
			t.Error("the container lost its layers")
		}
	}
	check()
	must(t, s.Close())

	// After a restart the link alone keeps the layers, whatever the
	// specifications contain.
	s, err = image.Open(ctx, image.Options{Root: root, Snapshotter: "overlay2"})
	must(t, err)
	must(t, s.PinSnapshots(ctx, nil))
	must(t, s.Collect(ctx))
	check()
	must(t, s.UnmountRootfs(mnt))
	must(t, s.MountRootfs(ctx, img.Snapshot, img.Storage, dir, mnt, false))
	check()
	must(t, s.Close())

	// And the specifications alone keep them if the link is lost.
	links, err := filepath.Glob(filepath.Join(root, "rootfs", "*"))
	must(t, err)
	for _, l := range links {
		must(t, os.Remove(l))
	}
	s = openStore(t, root, nil)
	must(t, s.PinSnapshots(ctx, []string{img.Snapshot}))
	must(t, s.Collect(ctx))
	check()

	must(t, s.UnmountRootfs(mnt))
	must(t, s.RemoveRootfs(ctx, dir))
	must(t, s.PinSnapshots(ctx, nil))
	if len(leftovers(t, root)) == 0 {
		t.Fatal("the layers were removed while they were still in use")
	}
	must(t, s.Collect(ctx))
	if left := leftovers(t, root); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestContainerWhoseDirectoryIsGoneHoldsNothing(t *testing.T) {
	reg := newRegistry(t)
	reg.push("gone:1", imageOf(t, "linux/amd64", layerOf(t, file{name: "a"})))
	var root string
	s := newStore(t, func(o *image.Options) { root = o.Root })
	pull(t, s, reg.ref("gone:1"))
	dir, mnt := mounted(t, s, reg.ref("gone:1"))
	must(t, s.UnmountRootfs(mnt))
	must(t, os.RemoveAll(dir))
	ctx := context.Background()
	_, err := s.Remove(ctx, reg.ref("gone:1"), false, true, nil)
	must(t, err)
	must(t, s.Collect(ctx))
	if left := leftovers(t, root); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestSecondProcessIsToldWhoHasTheStore(t *testing.T) {
	needRoot(t)
	root := filepath.Join(tempDir(t), "images")
	openStore(t, root, nil)
	began := time.Now()
	_, err := image.Open(context.Background(), image.Options{Root: root})
	wants(t, err, errdefs.IsUnavailable, "is in use by another process")
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("it took %s", d)
	}
}

func TestUnknownStorageDriverIsRefusedByName(t *testing.T) {
	_, err := image.Open(context.Background(), image.Options{Root: filepath.Join(t.TempDir(), "images"), Snapshotter: "btrfs"})
	wants(t, err, errdefs.IsInvalidArgument, `unknown storage driver "btrfs": known are overlay2 (overlayfs) and vfs (native)`)
}

func TestArchiveCannotClimbOutOfItsRoot(t *testing.T) {
	for _, driver := range []string{"overlay2", "vfs"} {
		t.Run(driver, func(t *testing.T) {
			base := tempDir(t)
			outside := filepath.Join(base, "outside")
			must(t, os.Mkdir(outside, 0o755))
			must(t, os.WriteFile(filepath.Join(outside, "victim"), []byte("untouched"), 0o644))
			up := strings.Repeat("../", 20)
			reg := newRegistry(t)
			for i, layer := range []v1.Layer{
				layerOf(t, file{name: up + strings.TrimPrefix(outside, "/") + "/evil", body: "x"}),
				layerOf(t, file{name: "/" + strings.TrimPrefix(outside, "/") + "/evil", body: "x"}),
				layerOf(t, file{name: "link", kind: '2', link: outside}, file{name: "link/evil", body: "x"}),
				layerOf(t, file{name: "link", kind: '2', link: up + strings.TrimPrefix(outside, "/")}, file{name: "link/evil", body: "x"}),
				layerOf(t, file{name: "hard", kind: '1', link: up + strings.TrimPrefix(outside, "/") + "/victim"}),
				layerOf(t, file{name: "link", kind: '2', link: outside}, file{name: "link/.wh.victim"}),
				layerOf(t, file{name: "link", kind: '2', link: outside}, file{name: "link/.wh..wh..opq"}),
				layerOf(t, file{name: up + strings.TrimPrefix(outside, "/") + "/.wh.victim"}),
			} {
				tag := fmt.Sprintf("climb:%d", i)
				reg.push(tag, imageOf(t, "linux/amd64", layerOf(t, file{name: "base"}), layer))
				s := newStore(t, func(o *image.Options) { o.Snapshotter = driver })
				// The pull may fail, or write only inside the store. Both are
				// correct.
				if err := s.Pull(context.Background(), reg.ref(tag), nil, nil, false, nil); err != nil {
					t.Logf("%d: %v", i, err)
				}
				entries, err := os.ReadDir(outside)
				must(t, err)
				if len(entries) != 1 || read(t, filepath.Join(outside, "victim")) != "untouched" {
					t.Fatalf("archive %d reached outside: %v", i, entries)
				}
			}
		})
	}
}

func TestBrokenArchiveIsRefusedAndNothingStays(t *testing.T) {
	reg := newRegistry(t)
	reg.push("broken:1", imageOf(t, "linux/amd64", broken(noise(5000))))
	var root string
	s := newStore(t, func(o *image.Options) { root = o.Root })
	ctx := context.Background()
	err := s.Pull(ctx, reg.ref("broken:1"), nil, nil, false, nil)
	wants(t, err, errdefs.IsInvalidArgument, "failed to register layer")
	must(t, s.Collect(ctx))
	if left := leftovers(t, root); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
