// SPDX-License-Identifier: Apache-2.0

package power

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"

	"holdfast/test/kit"
)

// label has the name of a container in the ledger.
const label = "power"

// patience bounds one operation and one look.
const patience = 60 * time.Second

// worker is a client that does one operation after the other, with objects of its
// own.
type worker struct {
	t    testing.TB
	api  *client.Client
	l    *ledger
	r    *rand.Rand
	name string
	from *kit.Registry
	// troubled is set when the disk has begun to fail. The end of a container is
	// reported then, although its record may not be written.
	troubled *atomic.Bool

	shared     *contentTable
	made       int // numbers names
	containers []*box
	images     []string // its own tags
	volumes    []string
	networks   []string
}

// contentTable has the files of all images, and the image that each tag was given
// first.
type contentTable struct {
	mu   sync.Mutex
	byID contents
	tags map[string]string
}

func (c *contentTable) put(id string, f files) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.byID[id] = f
}

// box is a container as its client knows it.
type box struct {
	key, id  string
	name     string
	kind     string
	policy   container.RestartPolicyMode
	code     int
	image    string
	started  bool
	running  bool
	networks []string
	mounts   []string
}

// Kinds of containers.
const (
	idles  = "idles"  // until it is stopped
	talks  = "talks"  // numbered lines until it is stopped
	ends   = "ends"   // with some lines and a code
	writes = "writes" // into a volume, and syncs
	fills  = "fills"  // a volume from its image
)

func (w *worker) next(prefix string) string {
	w.made++
	return fmt.Sprintf("%s-%s%d", prefix, w.name, w.made)
}

// pick returns an element, and false if there is none.
func pick[T any](r *rand.Rand, list []T) (e T, ok bool) {
	if len(list) == 0 {
		return e, false
	}
	return list[r.IntN(len(list))], true
}

// step does one operation. An error means that the engine refused what it should
// do.
func (w *worker) step(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	choices := []struct {
		weight int
		do     func(context.Context) error
	}{
		{6, w.create}, {8, w.start}, {3, w.stop}, {2, w.restart}, {3, w.rename}, {3, w.update}, {4, w.remove},
		{2, w.tag}, {2, w.untag}, {2, w.load}, {2, w.pull}, {2, w.commit}, {3, w.build},
		{2, w.createNetwork}, {1, w.removeNetwork}, {2, w.connect}, {1, w.disconnect},
		{1, w.createVolume}, {1, w.removeVolume},
	}
	total := 0
	for _, t := range choices {
		total += t.weight
	}
	n := w.r.IntN(total)
	for _, t := range choices {
		if n -= t.weight; n < 0 {
			return t.do(ctx)
		}
	}
	return nil
}

func (w *worker) create(ctx context.Context) error {
	if len(w.containers) >= 5 {
		return w.remove(ctx)
	}
	c := &box{key: w.next("c"), kind: []string{idles, talks, ends, writes, fills}[w.r.IntN(5)], policy: container.RestartPolicyDisabled}
	c.name = "name-" + c.key
	c.image, _ = pick(w.r, append([]string{baseTag}, w.images...))
	host := &container.HostConfig{}
	config := &container.Config{Image: c.image, Labels: map[string]string{label: c.key}, StopSignal: "SIGKILL", Env: []string{"KEY=" + c.key}}
	volume := func(at string) error {
		v, ok := pick(w.r, w.volumes)
		if !ok || at == "/"+dataFolder {
			if err := w.createVolume(ctx); err != nil {
				return err
			}
			v = w.volumes[len(w.volumes)-1]
		}
		host.Mounts = append(host.Mounts, mount.Mount{Type: mount.TypeVolume, Source: v, Target: at})
		c.mounts = append(c.mounts, v)
		return nil
	}
	switch c.kind {
	case idles:
		config.Cmd = []string{"sleep", "100000"}
	case talks:
		config.Cmd = []string{"sh", "-c", "i=0; while :; do i=$((i+1)); echo line $i of " + c.key + "; usleep 3000; done"}
		host.LogConfig = container.LogConfig{Type: []string{"json-file", "local"}[w.r.IntN(2)], Config: map[string]string{"max-size": "6k", "max-file": "3", "compress": strconv.FormatBool(w.r.IntN(2) == 0)}}
	case ends:
		c.code = w.r.IntN(100)
		config.Cmd = []string{"sh", "-c", fmt.Sprintf("i=0; while [ $i -lt 30 ]; do i=$((i+1)); echo line $i of %s; done; exit %d", c.key, c.code)}
		if w.r.IntN(2) == 0 {
			config.Volumes = map[string]struct{}{"/anonymous": {}}
		}
	case writes:
		if err := volume("/vol"); err != nil {
			return err
		}
		config.Cmd = []string{"sh", "-c", "echo $KEY | dd of=/vol/" + c.key + " conv=fsync 2>/dev/null"}
	case fills:
		if err := volume("/" + dataFolder); err != nil {
			return err
		}
		config.Cmd = []string{"true"}
	}
	if c.kind == idles || c.kind == talks {
		c.policy = []container.RestartPolicyMode{container.RestartPolicyDisabled, container.RestartPolicyAlways, container.RestartPolicyUnlessStopped}[w.r.IntN(3)]
	}
	host.RestartPolicy.Name = c.policy
	c.networks = []string{"bridge"}
	if n, ok := pick(w.r, w.networks); ok && w.r.IntN(2) == 0 {
		host.NetworkMode, c.networks = container.NetworkMode(n), []string{n}
	}
	o := w.l.ask("container "+c.key, there, c.is("name"), c.name, c.is("policy"), string(c.policy), c.is("memory"), "0",
		c.is("networks"), strings.Join(c.networks, " "), c.is("volumes"), strings.Join(c.mounts, " "), c.is("kind"), c.kind, c.is("life"), lifeNever)
	got, err := w.api.ContainerCreate(ctx, client.ContainerCreateOptions{Config: config, HostConfig: host, Name: c.name})
	if err != nil {
		return err
	}
	c.id = got.ID
	o.answered(c.is("id"), c.id, c.is("image"), w.shared.imageOf(c.image))
	w.containers = append(w.containers, c)
	return nil
}

// is names a property of the container.
func (c *box) is(property string) string { return "of " + c.key + ": " + property }

// there is the value of an object that exists and has no other.
const there = "there"

// Values of the property "life".
const (
	lifeNever   = "never started"
	lifeRuns    = "started"
	lifeStopped = "stopped by a user"
	lifeEnded   = "ended by itself"
)

func (c *contentTable) imageOf(tag string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tags[tag]
}

func (c *contentTable) setTag(tag, id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tags[tag] = id
}

func (w *worker) start(ctx context.Context) error {
	var able []*box
	for _, c := range w.containers {
		if !c.running {
			able = append(able, c)
		}
	}
	c, ok := pick(w.r, able)
	if !ok {
		return w.create(ctx)
	}
	sets := []string{c.is("life"), lifeRuns, c.is("exit"), anything, c.is("finished"), anything}
	o := w.l.ask(sets...)
	if _, err := w.api.ContainerStart(ctx, c.id, client.ContainerStartOptions{}); err != nil {
		return fmt.Errorf("start %s: %w", c.key, err)
	}
	if c.kind == fills {
		o.answered("filled "+c.mounts[0], w.shared.imageOf(c.image))
	} else {
		o.answered()
	}
	c.started, c.running = true, true
	if c.kind == idles || c.kind == talks {
		return nil
	}
	c.running = false
	sets = []string{c.is("life"), lifeEnded}
	o = w.l.ask(sets...)
	res := w.api.ContainerWait(ctx, c.id, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	select {
	case err := <-res.Error:
		return fmt.Errorf("wait for %s: %w", c.key, err)
	case got := <-res.Result:
		if int(got.StatusCode) != c.code {
			return fmt.Errorf("%s ended with %d", c.key, got.StatusCode)
		}
		told := []string{c.is("exit"), w.recorded(strconv.Itoa(c.code))}
		if c.kind == writes {
			told = append(told, "content "+c.mounts[0]+"/"+c.key, c.key)
		}
		o.answered(told...)
	}
	return w.look(ctx, c)
}

// look inspects a container that has ended: what a client has seen stays so.
func (w *worker) look(ctx context.Context, c *box) error {
	o := w.l.ask()
	got, err := w.api.ContainerInspect(ctx, c.id, client.ContainerInspectOptions{})
	if err != nil {
		return err
	}
	if got.Container.State.Status != container.StateExited {
		return fmt.Errorf("%s is %s after its end", c.key, got.Container.State.Status)
	}
	o.answered(c.is("exit"), w.recorded(strconv.Itoa(got.Container.State.ExitCode)), c.is("finished"), w.recorded(got.Container.State.FinishedAt))
	return nil
}

// recorded is what a property of an end may be after a loss of power, if a client has
// seen it.
func (w *worker) recorded(value string) string {
	if w.troubled != nil && w.troubled.Load() {
		return anything
	}
	return value
}

// runner picks a container that runs.
func (w *worker) runner() (*box, bool) {
	var able []*box
	for _, c := range w.containers {
		if c.running {
			able = append(able, c)
		}
	}
	return pick(w.r, able)
}

func (w *worker) stop(ctx context.Context) error {
	c, ok := w.runner()
	if !ok {
		return nil
	}
	o := w.l.ask(c.is("life"), w.recorded(lifeStopped))
	if _, err := w.api.ContainerStop(ctx, c.id, client.ContainerStopOptions{}); err != nil {
		return fmt.Errorf("stop %s: %w", c.key, err)
	}
	o.answered()
	c.running = false
	return w.look(ctx, c)
}

func (w *worker) restart(ctx context.Context) error {
	c, ok := w.runner()
	if !ok {
		return nil
	}
	// Between its two halves nothing is promised.
	o := w.l.ask(c.is("life"), anything, c.is("exit"), anything, c.is("finished"), anything)
	if _, err := w.api.ContainerRestart(ctx, c.id, client.ContainerRestartOptions{}); err != nil {
		return fmt.Errorf("restart %s: %w", c.key, err)
	}
	o.answered(c.is("life"), lifeRuns)
	return nil
}

func (w *worker) rename(ctx context.Context) error {
	c, ok := pick(w.r, w.containers)
	if !ok {
		return nil
	}
	name := w.next("renamed")
	o := w.l.ask(c.is("name"), name)
	if _, err := w.api.ContainerRename(ctx, c.id, client.ContainerRenameOptions{NewName: name}); err != nil {
		return fmt.Errorf("rename %s: %w", c.key, err)
	}
	o.answered()
	c.name = name
	return nil
}

func (w *worker) update(ctx context.Context) error {
	c, ok := pick(w.r, w.containers)
	if !ok {
		return nil
	}
	if c.kind != idles && c.kind != talks || w.r.IntN(2) == 0 {
		memory := int64(64+w.r.IntN(64)) << 20
		o := w.l.ask(c.is("memory"), strconv.FormatInt(memory, 10))
		if _, err := w.api.ContainerUpdate(ctx, c.id, client.ContainerUpdateOptions{Resources: &container.Resources{Memory: memory, MemorySwap: -1}}); err != nil {
			return fmt.Errorf("update %s: %w", c.key, err)
		}
		o.answered()
		return nil
	}
	policy := []container.RestartPolicyMode{container.RestartPolicyDisabled, container.RestartPolicyAlways, container.RestartPolicyUnlessStopped}[w.r.IntN(3)]
	o := w.l.ask(c.is("policy"), string(policy))
	if _, err := w.api.ContainerUpdate(ctx, c.id, client.ContainerUpdateOptions{RestartPolicy: &container.RestartPolicy{Name: policy}}); err != nil {
		return fmt.Errorf("update %s: %w", c.key, err)
	}
	o.answered()
	c.policy = policy
	return nil
}

func (w *worker) remove(ctx context.Context) error {
	c, ok := pick(w.r, w.containers)
	if !ok {
		return nil
	}
	// While it is removed with force, it may already have been stopped.
	o := w.l.ask("container "+c.key, "", c.is("life"), anything, c.is("exit"), anything, c.is("finished"), anything)
	if _, err := w.api.ContainerRemove(ctx, c.id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true}); err != nil {
		return fmt.Errorf("remove %s: %w", c.key, err)
	}
	o.answered()
	w.containers = slices.DeleteFunc(w.containers, func(o *box) bool { return o == c })
	return nil
}

func (w *worker) tag(ctx context.Context) error {
	from, _ := pick(w.r, append([]string{baseTag}, w.images...))
	name := w.next("tag") + ":1"
	id := w.shared.imageOf(from)
	o := w.l.ask("tag "+name, id)
	if _, err := w.api.ImageTag(ctx, client.ImageTagOptions{Source: from, Target: name}); err != nil {
		return fmt.Errorf("tag %s: %w", name, err)
	}
	o.answered()
	w.shared.setTag(name, id)
	w.images = append(w.images, name)
	return nil
}

func (w *worker) untag(ctx context.Context) error {
	name, ok := pick(w.r, w.images)
	if !ok {
		return nil
	}
	o := w.l.ask("tag "+name, "")
	if _, err := w.api.ImageRemove(ctx, name, client.ImageRemoveOptions{Force: true}); err != nil {
		// An image that a running container has keeps its last name.
		if strings.Contains(err.Error(), "is using") {
			o.answered("tag "+name, w.shared.imageOf(name))
			return nil
		}
		return fmt.Errorf("untag %s: %w", name, err)
	}
	o.answered()
	w.images = slices.DeleteFunc(w.images, func(i string) bool { return i == name })
	return nil
}

func (w *worker) load(ctx context.Context) error {
	if len(w.images) >= 4 {
		return w.untag(ctx)
	}
	name := w.next("loaded") + ":1"
	img, f := newImage(w.t, w.r, name)
	if w.r.IntN(3) == 0 {
		// An image of another platform is stored and not unpacked, and no container
		// can be made of it.
		img, f = foreign(w.t, img), nil
	}
	o := w.l.ask("tag "+name, anything)
	if err := load(ctx, w.api, kit.Archive(w.t, name, img)); err != nil {
		return fmt.Errorf("load %s: %w", name, err)
	}
	return w.hasImage(ctx, o, name, f)
}

func (w *worker) pull(ctx context.Context) error {
	if len(w.images) >= 4 {
		return w.untag(ctx)
	}
	img, f := newImage(w.t, w.r, w.next("pulled"))
	name := w.from.Push(w.next("pulled")+":1", img)
	o := w.l.ask("tag "+name, anything)
	res, err := w.api.ImagePull(ctx, name, client.ImagePullOptions{})
	if err != nil {
		return fmt.Errorf("pull %s: %w", name, err)
	}
	if err := errors.Join(res.Wait(ctx), res.Close()); err != nil {
		return fmt.Errorf("pull %s: %w", name, err)
	}
	return w.hasImage(ctx, o, name, f)
}

// hasImage ends the operation that has made an image.
func (w *worker) hasImage(ctx context.Context, o *operation, name string, f files) error {
	got, err := w.api.ImageInspect(ctx, name)
	if err != nil {
		return err
	}
	w.shared.put(got.ID, f)
	w.shared.setTag(name, got.ID)
	o.answered("tag "+name, got.ID)
	if f != nil {
		w.images = append(w.images, name)
	}
	return nil
}

func load(ctx context.Context, api *client.Client, archive io.Reader) error {
	res, err := api.ImageLoad(ctx, archive)
	if err != nil {
		return err
	}
	out, err := io.ReadAll(res)
	if err := errors.Join(err, res.Close()); err != nil {
		return err
	}
	if strings.Contains(string(out), `"error"`) {
		return errors.New(string(out))
	}
	return nil
}

func (w *worker) commit(ctx context.Context) error {
	c, ok := pick(w.r, w.containers)
	if !ok || len(w.images) >= 4 {
		return nil
	}
	name := w.next("committed") + ":1"
	w.shared.mu.Lock()
	f := w.shared.byID[w.shared.tags[c.image]]
	w.shared.mu.Unlock()
	o := w.l.ask("tag "+name, anything)
	if _, err := w.api.ContainerCommit(ctx, c.id, client.ContainerCommitOptions{Reference: name}); err != nil {
		return fmt.Errorf("commit %s: %w", c.key, err)
	}
	return w.hasImage(ctx, o, name, f)
}

func (w *worker) createNetwork(ctx context.Context) error {
	if len(w.networks) >= 2 {
		return nil
	}
	name := w.next("network")
	o := w.l.ask("network "+name, anything)
	got, err := w.api.NetworkCreate(ctx, name, client.NetworkCreateOptions{Driver: "bridge", Labels: map[string]string{label: name}})
	if err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	o.answered("network "+name, got.ID)
	w.networks = append(w.networks, name)
	return nil
}

// uses reports whether one of the worker's containers has a network or a volume.
func (w *worker) uses(name string) bool {
	return slices.ContainsFunc(w.containers, func(c *box) bool {
		return slices.Contains(c.networks, name) || slices.Contains(c.mounts, name)
	})
}

func (w *worker) removeNetwork(ctx context.Context) error {
	name, ok := pick(w.r, w.networks)
	if !ok || w.uses(name) {
		return nil
	}
	o := w.l.ask("network "+name, "")
	if _, err := w.api.NetworkRemove(ctx, name, client.NetworkRemoveOptions{}); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	o.answered()
	w.networks = slices.DeleteFunc(w.networks, func(n string) bool { return n == name })
	return nil
}

func (w *worker) connect(ctx context.Context) error {
	c, ok := pick(w.r, w.containers)
	n, ok2 := pick(w.r, w.networks)
	if !ok || !ok2 || slices.Contains(c.networks, n) {
		return nil
	}
	now := append(slices.Clone(c.networks), n)
	slices.Sort(now)
	o := w.l.ask(c.is("networks"), strings.Join(now, " "))
	if _, err := w.api.NetworkConnect(ctx, n, client.NetworkConnectOptions{Container: c.id}); err != nil {
		return fmt.Errorf("connect %s to %s: %w", c.key, n, err)
	}
	o.answered()
	c.networks = now
	return nil
}

func (w *worker) disconnect(ctx context.Context) error {
	c, ok := pick(w.r, w.containers)
	if !ok || len(c.networks) < 2 {
		return nil
	}
	n, _ := pick(w.r, c.networks)
	now := slices.DeleteFunc(slices.Clone(c.networks), func(o string) bool { return o == n })
	o := w.l.ask(c.is("networks"), strings.Join(now, " "))
	if _, err := w.api.NetworkDisconnect(ctx, n, client.NetworkDisconnectOptions{Container: c.id}); err != nil {
		return fmt.Errorf("disconnect %s from %s: %w", c.key, n, err)
	}
	o.answered()
	c.networks = now
	return nil
}

func (w *worker) createVolume(ctx context.Context) error {
	name := w.next("volume")
	o := w.l.ask("volume "+name, there)
	if _, err := w.api.VolumeCreate(ctx, client.VolumeCreateOptions{Name: name, Labels: map[string]string{label: name}}); err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	o.answered()
	w.volumes = append(w.volumes, name)
	return nil
}

func (w *worker) removeVolume(ctx context.Context) error {
	name, ok := pick(w.r, w.volumes)
	if !ok || w.uses(name) {
		return nil
	}
	o := w.l.ask("volume "+name, "")
	if _, err := w.api.VolumeRemove(ctx, name, client.VolumeRemoveOptions{}); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	o.answered()
	w.volumes = slices.DeleteFunc(w.volumes, func(v string) bool { return v == name })
	return nil
}
