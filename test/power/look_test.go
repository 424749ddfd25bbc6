// SPDX-License-Identifier: Apache-2.0

package power

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// inspection compares what a daemon has after a loss of power with what clients
// know.
type inspection struct {
	m     *machine
	api   *client.Client
	want  expectation
	known contents
	// found is what is not as it should be.
	found []string
}

func (i *inspection) wrong(format string, args ...any) {
	i.found = append(i.found, fmt.Sprintf(format, args...))
}

// is reports a property whose value no client allows.
func (i *inspection) is(property, value string) {
	if !i.want.allows(property, value) {
		i.wrong("%s is %q, want %q", property, value, i.want[property])
	}
}

// all looks at everything. An error means that it could not be looked at.
func (i *inspection) all(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	for _, look := range []func(context.Context) error{i.containers, i.volumes, i.networks, i.blobs, i.images, i.leftovers, i.builds, i.blobs} {
		if err := look(ctx); err != nil {
			return err
		}
	}
	return nil
}

// absent reports the objects of a kind that should exist and are not among seen.
func (i *inspection) absent(kind string, seen map[string]bool) {
	for _, property := range slices.Sorted(maps.Keys(i.want)) {
		if name, ok := strings.CutPrefix(property, kind+" "); ok && !seen[name] && !i.want.allows(property, "") {
			i.wrong("%s is lost", property)
		}
	}
}

func (i *inspection) containers(ctx context.Context) error {
	list, err := i.api.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, c := range list.Items {
		key := c.Labels[label]
		got, err := i.api.ContainerInspect(ctx, c.ID, client.ContainerInspectOptions{})
		if i.want.allows("container "+key, "") && (errdefs.IsNotFound(err) || err == nil && got.Container.State.Status == container.StateRemoving) {
			continue // a removal that had begun is being finished
		}
		if err != nil {
			i.wrong("container %v is listed and can't be inspected: %v", c.Names, err)
			continue
		}
		if seen[key] {
			i.wrong("container %s is there twice", key)
		}
		seen[key] = true
		i.is("container "+key, there)
		i.container(ctx, &box{key: key}, got.Container)
	}
	i.absent("container", seen)
	return nil
}

func (i *inspection) container(ctx context.Context, b *box, c container.InspectResponse) {
	// A creation that nobody was told of has no ID in the ledger.
	if _, known := i.want[b.is("id")]; known {
		i.is(b.is("id"), c.ID)
		i.is(b.is("image"), c.Image)
	}
	i.is(b.is("name"), strings.TrimPrefix(c.Name, "/"))
	i.is(b.is("policy"), string(c.HostConfig.RestartPolicy.Name))
	i.is(b.is("memory"), strconv.FormatInt(c.HostConfig.Memory, 10))
	i.is(b.is("networks"), strings.Join(slices.Sorted(maps.Keys(c.NetworkSettings.Networks)), " "))
	var volumes []string
	for _, m := range c.Mounts {
		if m.Destination != "/anonymous" {
			volumes = append(volumes, m.Name)
		}
	}
	i.is(b.is("volumes"), strings.Join(volumes, " "))
	i.life(ctx, b, c)
	i.log(ctx, b, c)
}

// life checks that a container runs, if its policy says so.
func (i *inspection) life(ctx context.Context, b *box, c container.InspectResponse) {
	life, sure := i.want.must(b.is("life"))
	policy, _ := i.want.must(b.is("policy"))
	kind, _ := i.want.must(b.is("kind"))
	if !sure || policy == "" || kind == "" {
		return
	}
	long := kind == idles || kind == talks
	switch {
	case life == lifeNever:
		if c.State.Status != container.StateCreated {
			i.wrong("%s was never started and is %s", b.key, c.State.Status)
		}
	case long && (policy == string(container.RestartPolicyAlways) || policy == string(container.RestartPolicyUnlessStopped) && life == lifeRuns):
		if err := i.untilRunning(ctx, c.ID); err != nil {
			i.wrong("%s has the policy %s, %s, and does not run: %v", b.key, policy, life, err)
		}
	default:
		if c.State.Running || c.State.Status != container.StateExited {
			i.wrong("%s has the policy %s, %s, and is %s", b.key, policy, life, c.State.Status)
			return
		}
		if life == lifeRuns {
			return
		}
		i.is(b.is("exit"), strconv.Itoa(c.State.ExitCode))
		if _, known := i.want[b.is("finished")]; known {
			i.is(b.is("finished"), c.State.FinishedAt)
		}
	}
}

// untilRunning waits until a container runs. It also asks for the events before, because
// the container may start before the daemon has the request for events.
func (i *inspection) untilRunning(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	events := i.api.Events(ctx, client.EventsListOptions{Since: "1", Filters: client.Filters{}.Add("container", id).Add("event", "start")})
	for {
		got, err := i.api.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
		if err != nil {
			return err
		}
		if got.Container.State.Running {
			return nil
		}
		select {
		case <-events.Messages:
		case err := <-events.Err:
			return fmt.Errorf("%s (%d), %s: %w", got.Container.State.Status, got.Container.State.ExitCode, got.Container.State.Error, err)
		}
	}
}

// log checks that the lines of a log are whole and in order, and that none is
// missing between others.
func (i *inspection) log(ctx context.Context, b *box, c container.InspectResponse) {
	if kind, _ := i.want.must(b.is("kind")); kind != talks && kind != ends {
		return
	}
	res, err := i.api.ContainerLogs(ctx, c.ID, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true})
	if err != nil {
		i.wrong("the log of %s can't be read: %v", b.key, err)
		return
	}
	defer res.Close()
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &out, res); err != nil {
		i.wrong("the log of %s can't be read to its end: %v", b.key, err)
		return
	}
	last := 0
	for s := bufio.NewScanner(&out); s.Scan(); {
		var n int
		var of string
		if _, err := fmt.Sscanf(s.Text(), "line %d of %s", &n, &of); err != nil || of != b.key {
			i.wrong("the log of %s has a line %q", b.key, s.Text())
			return
		}
		// A run begins with 1; the first line of the log may be any, after rotations.
		if last != 0 && n != last+1 && n != 1 {
			i.wrong("in the log of %s line %d comes after line %d", b.key, n, last)
		}
		last = n
	}
}

func (i *inspection) volumes(ctx context.Context) error {
	list, err := i.api.VolumeList(ctx, client.VolumeListOptions{})
	if err != nil {
		return err
	}
	used := map[string]bool{}
	all, err := i.api.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		return err
	}
	for _, c := range all.Items {
		for _, m := range c.Mounts {
			used[m.Name] = true
		}
	}
	seen := map[string]bool{}
	for _, v := range list.Items {
		name := v.Labels[label]
		if name == "" {
			if !used[v.Name] {
				i.wrong("volume %s belongs to no container", v.Name)
			}
			continue
		}
		if name != v.Name {
			i.wrong("volume %s has the label %s", v.Name, name)
		}
		seen[name] = true
		i.is("volume "+name, there)
		if err := i.volume(ctx, name, all.Items); err != nil {
			return err
		}
	}
	i.absent("volume", seen)
	return nil
}

// volume compares the content of a volume.
func (i *inspection) volume(ctx context.Context, name string, all []container.Summary) error {
	dir := i.path("volumes", name, "_data")
	for property := range i.want {
		file, ok := strings.CutPrefix(property, "content "+name+"/")
		if value, sure := i.want.must(property); ok && sure {
			if b, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(b) != value+"\n" {
				i.wrong("file %s of volume %s, which was synced, has %q, want %q (%v)", file, name, b, value+"\n", err)
			}
		}
	}
	image, sure := i.want.must("filled " + name)
	if !sure || image == "" {
		return nil
	}
	// The next start may fill it, so it is what the container sees that counts.
	for _, c := range all {
		for _, m := range c.Mounts {
			if m.Name != name {
				continue
			}
			if _, err := i.api.ContainerStart(ctx, c.ID, client.ContainerStartOptions{}); err != nil {
				i.wrong("%v can't be started: %v", c.Names, err)
			}
		}
	}
	have, err := folderFiles(dir)
	if err != nil {
		return err
	}
	// A container that writes puts a file of its name into the volume, also when it was
	// started just now.
	for file := range have {
		b := box{key: file}
		if i.want.allows(b.is("kind"), writes) && i.want.allows(b.is("volumes"), name) {
			delete(have, file)
		}
	}
	want := files{}
	for f, s := range i.known[image] {
		if base, ok := strings.CutPrefix(f, dataFolder+"/"); ok {
			want[base] = s
		}
	}
	if d := have.differences(want); len(d) > 0 {
		i.wrong("volume %s was filled from image %s: %s", name, image, strings.Join(d, ", "))
	}
	return nil
}

func (i *inspection) networks(ctx context.Context) error {
	list, err := i.api.NetworkList(ctx, client.NetworkListOptions{})
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, n := range list.Items {
		name := n.Labels[label]
		if name == "" && slices.Contains([]string{"bridge", "host", "none"}, n.Name) {
			continue
		}
		if seen[n.Name] {
			i.wrong("network %s is there twice", n.Name)
		}
		seen[n.Name] = true
		if name != n.Name {
			i.wrong("network %s has the label %q", n.Name, name)
		}
		i.is("network "+n.Name, n.ID)
	}
	i.absent("network", seen)
	return nil
}

// path is a path below the data root, as the machine sees it.
func (i *inspection) path(elem ...string) string {
	return filepath.Join(append([]string{fmt.Sprintf("/proc/%d/root", i.m.d.Pid()), i.m.d.DataRoot}, elem...)...)
}

// blobs checks that the content of each blob is what its name says.
func (i *inspection) blobs(context.Context) error {
	dir := i.path("images", "content", "blobs", "sha256")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // the garbage collector was faster
		}
		if err != nil {
			return err
		}
		h := sha256.New()
		n, err := io.Copy(h, f)
		f.Close()
		if err != nil {
			return err
		}
		if got := fmt.Sprintf("%x", h.Sum(nil)); got != e.Name() {
			i.wrong("blob %s has %d bytes with the digest %s", e.Name()[:12], n, got[:12])
		}
	}
	return nil
}

// images compares the tags, and the files of each image as a container has them.
func (i *inspection) images(ctx context.Context) error {
	list, err := i.api.ImageList(ctx, client.ImageListOptions{})
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, img := range list.Items {
		for _, tag := range img.RepoTags {
			seen[tag] = true
			i.is("tag "+tag, img.ID)
		}
		if len(img.RepoTags) == 0 {
			continue
		}
		if err := i.saved(ctx, img.RepoTags[0]); err != nil {
			i.wrong("image %s can't be saved: %v", img.RepoTags[0], err)
		}
		if want := i.known[img.ID]; want != nil {
			i.image(ctx, img.RepoTags[0], want)
		}
	}
	i.absent("tag", seen)
	return nil
}

// saved reads all blobs of an image.
func (i *inspection) saved(ctx context.Context, tag string) error {
	res, err := i.api.ImageSave(ctx, []string{tag})
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, res)
	return errors.Join(err, res.Close())
}

func (i *inspection) image(ctx context.Context, tag string, want files) {
	c, err := i.api.ContainerCreate(ctx, client.ContainerCreateOptions{Config: &container.Config{Image: tag, Cmd: []string{"cat", "/" + dataFolder + "/mark"}}})
	if err != nil {
		i.wrong("no container can be created from %s: %v", tag, err)
		return
	}
	defer func() {
		if _, err := i.api.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true}); err != nil {
			i.wrong("a container of %s can't be removed: %v", tag, err)
		}
	}()
	res, err := i.api.ContainerExport(ctx, c.ID, client.ContainerExportOptions{})
	if err != nil {
		i.wrong("a container of %s can't be exported: %v", tag, err)
		return
	}
	have, err := readFiles(res)
	if err := errors.Join(err, res.Close()); err != nil {
		i.wrong("a container of %s can't be exported: %v", tag, err)
		return
	}
	if d := have.differences(want); len(d) > 0 {
		i.wrong("image %s does not have its files: %s", tag, strings.Join(d, ", "))
	}
}

// leftovers reports what is half made, and what was set aside without a word in
// the daemon's log.
func (i *inspection) leftovers(context.Context) error {
	log := i.m.d.Log()
	return filepath.WalkDir(i.path(), func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		name := e.Name()
		rel := strings.TrimPrefix(path, i.path())
		switch {
		case strings.Contains(name, ".damaged"):
			if !strings.Contains(log, strings.TrimSuffix(name, ".damaged")) {
				i.wrong("%s was set aside, and the log does not say so", rel)
			}
		case strings.Contains(name, ".tmp-") || strings.HasPrefix(name, ".removing-") || name == "creating" ||
			strings.HasPrefix(rel, "/networks/.") && strings.Contains(name, ".tmp"):
			// Elsewhere a temporary file with a fixed name is replaced by the next.
			i.wrong("%s is left", rel)
		}
		if e.IsDir() && (name == "_data" || name == "snapshots" || name == "upper" || name == "work") {
			return fs.SkipDir
		}
		return nil
	})
}
