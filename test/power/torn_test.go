// SPDX-License-Identifier: Apache-2.0

package power

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"

	"holdfast/test/kit"
)

// tears are what a disk may make of a file that it says is written.
var tears = map[string]func([]byte) []byte{
	"empty":  func([]byte) []byte { return nil },
	"halved": func(b []byte) []byte { return b[:len(b)/2] },
	"zeroed": func(b []byte) []byte { return make([]byte, len(b)) },
	"half zeroed": func(b []byte) []byte {
		b = slices.Clone(b)
		clear(b[len(b)/2:])
		return b
	},
}

// tearless are files whose content nobody reads, or whose loss is no damage, with the
// reason.
var tearless = map[string]string{
	"holdfastd.lock": "only its lock counts",
	"hostname":       "written again at each start of the container",
	"hosts":          "the same", "resolv.conf": "the same", "resolv.conf.hash": "the same",
}

// objects lists what a daemon has, and the kind of each.
func objects(t *testing.T, api *client.Client) (out []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	containers, err := api.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		t.Errorf("list containers: %v", err)
	}
	for _, c := range containers.Items {
		out = append(out, "container "+c.ID)
	}
	volumes, err := api.VolumeList(ctx, client.VolumeListOptions{})
	if err != nil {
		t.Errorf("list volumes: %v", err)
	}
	for _, v := range volumes.Items {
		out = append(out, "volume "+v.Name)
	}
	networks, err := api.NetworkList(ctx, client.NetworkListOptions{})
	if err != nil {
		t.Errorf("list networks: %v", err)
	}
	for _, n := range networks.Items {
		out = append(out, "network "+n.Name)
	}
	images, err := api.ImageList(ctx, client.ImageListOptions{})
	if err != nil {
		t.Errorf("list images: %v", err)
	}
	for _, i := range images.Items {
		for _, tag := range i.RepoTags {
			out = append(out, "image "+tag)
		}
	}
	slices.Sort(out)
	return out
}

// TestTornRecordHindersNoStartAndIsNamed damages each record below the data root, one
// at a time: the daemon starts, everything that has other records is there, and the
// daemon's log names the file or its object.
func TestTornRecordHindersNoStartAndIsNamed(t *testing.T) {
	d := kit.Start(t, kit.Options{LiveRestore: true})
	api := d.Client()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	r := rand.New(rand.NewPCG(1, 1))
	img, _ := newImage(t, r, "base")
	d.Load(baseTag, img)
	if _, err := api.NetworkCreate(ctx, "net", client.NetworkCreateOptions{Driver: "bridge"}); err != nil {
		t.Fatal(err)
	}
	if _, err := api.VolumeCreate(ctx, client.VolumeCreateOptions{Name: "vol"}); err != nil {
		t.Fatal(err)
	}
	for name, command := range map[string][]string{"made": {"true"}, "ended": {"sh", "-c", "echo a line; exit 3"}} {
		made, err := api.ContainerCreate(ctx, client.ContainerCreateOptions{
			Name: name, Config: &container.Config{Image: baseTag, Cmd: command},
			HostConfig: &container.HostConfig{NetworkMode: "net", Mounts: []mount.Mount{{Type: mount.TypeVolume, Source: "vol", Target: "/vol"}}},
		})
		if err == nil && name == "ended" {
			_, err = api.ContainerStart(ctx, made.ID, client.ContainerStartOptions{})
			if err == nil {
				w := api.ContainerWait(ctx, made.ID, client.ContainerWaitOptions{})
				select {
				case err = <-w.Error:
				case <-w.Result:
				}
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	want := objects(t, api)
	d.Term()

	whole := filepath.Join(d.Root, "whole")
	if out, err := exec.Command("cp", "-a", d.DataRoot, whole).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var records []string
	err := filepath.WalkDir(d.DataRoot, func(path string, e fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(d.DataRoot, path)
		switch {
		case err != nil:
			return err
		case e.IsDir() && rel != "images/snapshots" && slices.Contains([]string{"_data", "snapshots", "blobs", "upper", "work"}, e.Name()):
			return fs.SkipDir
		case e.Type().IsRegular() && tearless[e.Name()] == "" && !strings.Contains(e.Name(), "-json.log"):
			records = append(records, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(records) < 8 {
		t.Fatalf("only %q", records)
	}
	for _, rel := range records {
		for how, tear := range tears {
			t.Run(fmt.Sprintf("%s %s", strings.ReplaceAll(rel, "/", ":"), how), func(t *testing.T) {
				restoreAll(t, whole, d.DataRoot)
				path := filepath.Join(d.DataRoot, rel)
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				after := tear(b)
				if string(after) == string(b) {
					return // it was empty
				}
				if err := os.WriteFile(path, after, 0o600); err != nil {
					t.Fatal(err)
				}
				// The run directory does not outlive the machine.
				if err := errors.Join(os.RemoveAll(d.LogFile()), os.RemoveAll(d.ExecRoot)); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				if err := d.TryStart(); err != nil {
					t.Errorf("the daemon does not start: %v", err)
					return
				}
				if took := time.Since(began); took > 30*time.Second {
					t.Errorf("the daemon took %s to start", took)
				}
				have := objects(t, api)
				log := d.Log()
				usable(t, d, api, rel)
				d.Term()
				for _, o := range want {
					kind, name, _ := strings.Cut(o, " ")
					own := strings.HasPrefix(rel, kind+"s/") && (kind == "image" || kind == "network" || strings.Contains(rel, name))
					if !slices.Contains(have, o) && !own {
						t.Errorf("%s is lost", o)
					}
				}
				part := rel
				if id := filepath.Base(filepath.Dir(rel)); strings.HasPrefix(rel, "containers/") {
					part = id[:12]
				}
				if !strings.Contains(log, filepath.Base(rel)) && !strings.Contains(log, part) {
					t.Errorf("the log does not name %s:\n%s", rel, log)
				}
			})
		}
	}
	restoreAll(t, whole, d.DataRoot)
	if err := os.RemoveAll(whole); err != nil {
		t.Fatal(err)
	}
}

// usable checks that what needs no damaged record can be used: containers start, and
// images are loaded.
func usable(t *testing.T, d *kit.Daemon, api *client.Client, rel string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	img, _ := newImage(t, rand.New(rand.NewPCG(1, 1)), "base")
	if err := load(ctx, api, kit.Archive(t, baseTag, img)); err != nil {
		t.Errorf("an image can't be loaded: %v", err)
	}
	if strings.HasPrefix(rel, "networks/") || strings.HasPrefix(rel, "volumes/") {
		return
	}
	for _, name := range []string{"made", "ended"} {
		_, err := api.ContainerStart(ctx, name, client.ContainerStartOptions{})
		if err != nil && !errdefs.IsNotFound(err) {
			t.Errorf("container %s can't be started: %v", name, err)
		}
	}
	// Both end at once. The caller removes the run directory, in which their network
	// namespaces are mounted until the daemon has dealt with the ends.
	kit.Eventually(t, "the containers have given back their namespaces", func() bool {
		left, err := filepath.Glob(d.ExecRoot + "/shim/*/netns")
		return err == nil && len(left) == 0
	})
}

// restoreAll makes a folder the copy of another.
func restoreAll(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
