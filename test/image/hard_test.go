// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/vishvananda/netlink"

	"holdfast/internal/image"
	"holdfast/internal/image/mounts"
)

// TestMain is also the program of the process that TestPullKilledAtAnyMoment
// kills.
func TestMain(m *testing.M) {
	if root := os.Getenv("HOLDFAST_TEST_PULL_ROOT"); root != "" {
		ctx := context.Background()
		s, err := image.Open(ctx, image.Options{Root: root, Snapshotter: "overlay2"})
		if err == nil {
			err = s.Pull(ctx, os.Getenv("HOLDFAST_TEST_PULL_REF"), nil, nil, false, nil)
		}
		fmt.Println("the pull ended:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestPullKilledAtAnyMomentIsDoneAgain(t *testing.T) {
	reg := newRegistry(t)
	reg.push("kill:1", imageOf(t, "linux/amd64",
		layerOf(t, file{name: "a", body: noise(200_000)}), layerOf(t, file{name: "b", body: noise(300_000)}), layerOf(t, file{name: "c", body: "c"})))
	before := len(reg.requests(""))
	pull(t, newStore(t, nil), reg.ref("kill:1"))
	requests := len(reg.requests("")) - before

	root := filepath.Join(tempDir(t), "images")
	exe, err := os.Executable()
	must(t, err)
	for at := 1; at <= requests; at++ {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), "HOLDFAST_TEST_PULL_ROOT="+root, "HOLDFAST_TEST_PULL_REF="+reg.ref("kill:1"))
		var out bytes.Buffer
		cmd.Stdout = &out
		// The process is killed when half of the answer to request number at is
		// written.
		var mu sync.Mutex
		seen := 0
		started := make(chan struct{})
		reg.interpose(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			mu.Lock()
			seen++
			mine := seen
			mu.Unlock()
			if mine >= at {
				next.ServeHTTP(&cutter{ResponseWriter: w, left: 100_000}, r)
				<-started
				_ = cmd.Process.Kill()
				<-r.Context().Done()
				return
			}
			next.ServeHTTP(w, r)
		})
		must(t, cmd.Start())
		close(started)
		_ = cmd.Wait()
		if out.Len() > 0 {
			t.Fatalf("killed too late: %s", &out)
		}
		reg.interpose(nil)

		ctx := context.Background()
		s, err := image.Open(ctx, image.Options{Root: root, Snapshotter: "overlay2"})
		must(t, err)
		must(t, s.PinSnapshots(ctx, nil))
		pull(t, s, reg.ref("kill:1"))
		must(t, s.Collect(ctx))
		_, mnt := mounted(t, s, reg.ref("kill:1"))
		if read(t, filepath.Join(mnt, "a")) != noise(200_000) || read(t, filepath.Join(mnt, "b")) != noise(300_000) || read(t, filepath.Join(mnt, "c")) != "c" {
			t.Errorf("killed at request %d: the image is incomplete", at)
		}
		must(t, s.UnmountRootfs(mnt))
		must(t, os.RemoveAll(filepath.Join(filepath.Dir(mnt), "container")))
		_, err = s.Remove(ctx, reg.ref("kill:1"), true, true, nil)
		must(t, err)
		must(t, s.Collect(ctx))
		if left := leftovers(t, root); len(left) > 0 {
			t.Errorf("killed at request %d: files left over: %q", at, left)
		}
		must(t, s.Close())
	}
}

func TestCollectorKeepsWhatAPullBrings(t *testing.T) {
	reg := newRegistry(t)
	reg.push("busy:1", imageOf(t, "linux/amd64", layerOf(t, file{name: "a", body: noise(50_000)}), layerOf(t, file{name: "b", body: noise(60_000)})))
	s := newStore(t, nil)
	reg.interpose(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(w, r)
		if err := s.Collect(context.Background()); err != nil {
			t.Error(err)
		}
	})
	pull(t, s, reg.ref("busy:1"))
	must(t, s.Collect(context.Background()))
	_, mnt := mounted(t, s, reg.ref("busy:1"))
	if read(t, filepath.Join(mnt, "a")) != noise(50_000) || read(t, filepath.Join(mnt, "b")) != noise(60_000) {
		t.Error("the image is incomplete")
	}
}

func TestCancelledPullLeavesNothing(t *testing.T) {
	reg := newRegistry(t)
	reg.push("slow:1", imageOf(t, "linux/amd64", layerOf(t, file{name: "a", body: noise(500_000)})))
	ctx, cancel := context.WithCancel(context.Background())
	reg.interpose(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			next.ServeHTTP(&cutter{ResponseWriter: w, left: 100_000}, r)
			cancel()
			<-r.Context().Done()
			return
		}
		next.ServeHTTP(w, r)
	})
	var root string
	s := newStore(t, func(o *image.Options) { root = o.Root })
	wants(t, s.Pull(ctx, reg.ref("slow:1"), nil, nil, false, nil), errdefs.IsCanceled, "context canceled")
	must(t, s.Collect(context.Background()))
	if left := leftovers(t, root); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestSelfSignedRegistryIsRefusedUnlessInsecure(t *testing.T) {
	plain := newRegistry(t)
	plain.push("tls:1", imageOf(t, "linux/amd64", layerOf(t, file{name: "x"})))
	srv := httptest.NewTLSServer(plain.srv.Config.Handler)
	t.Cleanup(srv.Close)
	s := newStore(t, nil)
	must(t, s.Pull(context.Background(), strings.TrimPrefix(srv.URL, "https://")+"/tls:1", nil, nil, false, nil))
	// The same server at an address of this machine that is not a loopback
	// address.
	addr := ownAddress(t)
	l, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
	must(t, err)
	other := httptest.NewUnstartedServer(plain.srv.Config.Handler)
	must(t, other.Listener.Close())
	other.Listener = l
	other.Config.ErrorLog = log.New(io.Discard, "", 0)
	other.StartTLS()
	t.Cleanup(other.Close)
	ref := l.Addr().String() + "/tls:1"
	err = s.Pull(context.Background(), ref, nil, nil, false, nil)
	wants(t, err, errdefs.IsUnavailable, "certificate")
	must(t, s.SetRegistry(image.Registry{Insecure: []string{addr + "/32"}}))
	must(t, s.Pull(context.Background(), ref, nil, nil, false, nil))
}

// ownAddress returns an IPv4 address of this machine that is not a loopback
// address. If there is none, it adds one to an interface of its own, which is
// removed at the end of the test.
func ownAddress(t testing.TB) string {
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("hfimg%d", os.Getpid()%100000)}}
	must(t, netlink.LinkAdd(link))
	t.Cleanup(func() {
		if err := netlink.LinkDel(link); err != nil {
			t.Error(err)
		}
	})
	ip := fmt.Sprintf("198.18.%d.%d", os.Getpid()/250%250, os.Getpid()%250+1)
	addr, err := netlink.ParseAddr(ip + "/32")
	must(t, err)
	must(t, netlink.AddrAdd(link, addr))
	must(t, netlink.LinkSetUp(link))
	return ip
}

func TestLayerThatTheConfigDoesNotNameIsRefused(t *testing.T) {
	reg := newRegistry(t)
	img := imageOf(t, "linux/amd64", layerOf(t, file{name: "x", body: "true"}))
	conf, err := img.ConfigFile()
	must(t, err)
	conf = conf.DeepCopy()
	conf.RootFS.DiffIDs[0] = v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("ab", 32)}
	img, err = mutate.ConfigFile(img, conf)
	must(t, err)
	reg.push("swap:1", img)
	var root string
	s := newStore(t, func(o *image.Options) { root = o.Root })
	ctx := context.Background()
	wants(t, s.Pull(ctx, reg.ref("swap:1"), nil, nil, false, nil), errdefs.IsDataLoss, "not the one that the image's config names")
	must(t, s.Collect(ctx))
	if left := leftovers(t, root); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestBothWaysOfMountingTakeManyLayersAndOddNames(t *testing.T) {
	needRoot(t)
	for way, mount := range map[string]func(mounts.Overlay, string) error{
		"by descriptor": mounts.Overlay.MountByFD,
		"by options":    mounts.Overlay.MountByOptions,
	} {
		t.Run(way, func(t *testing.T) {
			base := filepath.Join(tempDir(t), `a,b:c\d`)
			o := mounts.Overlay{Upper: filepath.Join(base, "upper"), Work: filepath.Join(base, "work")}
			target := filepath.Join(base, "mnt")
			for _, dir := range []string{o.Upper, o.Work, target} {
				must(t, os.MkdirAll(dir, 0o755))
			}
			for i := range 120 {
				dir := filepath.Join(base, "snapshots", fmt.Sprint(i), "fs")
				must(t, os.MkdirAll(dir, 0o755))
				must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o644))
				o.Lowers = append(o.Lowers, dir)
			}
			must(t, mount(o, target))
			if on, err := mounts.Mounted(target); err != nil || !on {
				t.Errorf("mounted: %v %v", on, err)
			}
			entries, err := os.ReadDir(target)
			must(t, err)
			if len(entries) != 120 {
				t.Errorf("%d files of 120 layers", len(entries))
			}
			must(t, os.WriteFile(filepath.Join(target, "new"), nil, 0o644))
			if _, err := os.Stat(filepath.Join(o.Upper, "new")); err != nil {
				t.Error(err)
			}
		})
	}
}
