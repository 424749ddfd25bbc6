// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"holdfast/test/kit"
)

const (
	image = "soak:1"
	// bound is how long anything may take while the machine is busy and a daemon is
	// away for a moment.
	bound = 60 * time.Second
)

// box is a container of the soak. Its program never changes.
type box struct {
	n                int
	name, id         string
	rate             int           // lines per second
	life             time.Duration // of a run; 0 is for ever
	code             int           // with which a run ends
	policy           container.RestartPolicyMode
	check            time.Duration // the interval of the health check; 0 is none
	period           int           // in seconds, after which the health changes; 0 is never
	port, tty, local bool
	compress         bool
	address          string // of the published port
	started          string
	pid              int
}

// plan chooses what the containers are. The same number always gives the same ones.
func plan(n int, length time.Duration) []*box {
	// A run, a health check and a rotation are so short that a short soak has some,
	// and so long that 200 containers leave the machine some rest.
	scale := func(share int, least, most time.Duration) time.Duration {
		return min(max(length/time.Duration(share), least), most)
	}
	life, check := scale(10, 3*time.Second, 75*time.Second), scale(20, time.Second, 30*time.Second)
	var out []*box
	for i := range n {
		b := &box{n: i, name: fmt.Sprintf("box%d", i), rate: 1, port: i%2 == 0, tty: i%25 == 8, local: i%7 == 3, compress: i%7 == 5}
		switch {
		case i%100 == 1:
			b.rate = 500
		case i%10 == 1:
			b.rate = 20
		case i%3 == 0:
			b.rate = 5
		}
		if i%5 == 2 {
			b.life = life + life*time.Duration(i%7)/7
			b.policy = []container.RestartPolicyMode{container.RestartPolicyAlways, container.RestartPolicyOnFailure, container.RestartPolicyUnlessStopped}[i%3]
			b.code = 3
		}
		if i%4 == 1 {
			b.check = check
			if i%20 == 5 {
				b.period = int(8 * check / time.Second)
			}
		}
		out = append(out, b)
	}
	return out
}

// house is a daemon with its containers and clients.
type house struct {
	t      *testing.T
	d      *kit.Daemon
	api    *client.Client
	boxes  []*box
	began  time.Time
	length time.Duration
	ctx    context.Context
	cancel context.CancelFunc
	users  sync.WaitGroup

	mu     sync.Mutex // guards what follows
	wrongs []string
	done   map[string]int // what was done, by its name
	away   bool           // the daemon is being killed or started
	last   time.Time      // when it was last away
	starts map[string]int // start events, by container
	dies   map[string]int
}

// wrong records what must not be.
func (h *house) wrong(format string, args ...any) {
	text := fmt.Sprintf("%s after %s: ", time.Now().Format("15:04:05"), time.Since(h.began).Round(time.Second)) + fmt.Sprintf(format, args...)
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.wrongs) < 50 {
		fmt.Printf("soak: WRONG: %s\n", text)
	}
	h.wrongs = append(h.wrongs, text)
}

func (h *house) count(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done[what]++
}

// disturbed reports whether the daemon was away at some moment since from, so that a
// request may have failed.
func (h *house) disturbed(from time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.away || h.last.After(from)
}

// while marks the time in which fn lets the daemon be away.
func (h *house) while(fn func()) {
	h.mu.Lock()
	h.away = true
	h.mu.Unlock()
	fn()
	h.mu.Lock()
	h.away, h.last = false, time.Now()
	h.mu.Unlock()
}

// patiently repeats a request that a daemon which was away has not answered.
func (h *house) patiently(ctx context.Context, fn func(ctx context.Context) error) error {
	late := time.Now().Add(bound)
	for {
		began := time.Now()
		try, cancel := context.WithTimeout(ctx, bound)
		err := fn(try)
		cancel()
		if err == nil || ctx.Err() != nil || !h.disturbed(began) || time.Now().After(late) {
			return err
		}
		h.pause(200 * time.Millisecond)
	}
}

// pause waits, or returns false at the soak's end.
func (h *house) pause(d time.Duration) bool {
	select {
	case <-h.ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// build starts the daemon and all containers.
func build(t *testing.T, containers int, length time.Duration) *house {
	t.Helper()
	h := &house{t: t, length: length, boxes: plan(containers, length), done: map[string]int{}, starts: map[string]int{}, dies: map[string]int{}}
	h.d = kit.New(t, kit.Options{LiveRestore: true, Disk: true, Config: map[string]any{"debug": true}})
	h.d.Address = netip.MustParsePrefix("10.63.0.1/16")
	h.d.Start()
	h.d.Load(image, kit.ProgramImage(t, "./player"))
	h.api = h.d.Client()
	h.ctx, h.cancel = context.WithCancel(context.Background())
	t.Cleanup(func() { h.cancel(); h.users.Wait() })
	var wg sync.WaitGroup
	slots := make(chan struct{}, 3)
	errs := make([]error, containers)
	for i, b := range h.boxes {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			errs[i] = h.start(b)
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	h.began = time.Now()
	return h
}

// start makes and starts a container.
func (h *house) start(b *box) error {
	// Rotation keeps the lines of about half a minute, as a line takes about 130 bytes.
	size := max(4096, b.rate*130*10)
	logs := container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": strconv.Itoa(size), "max-file": "3"}}
	if b.local {
		logs.Type = "local"
	}
	if b.compress || b.local {
		logs.Config["compress"] = strconv.FormatBool(b.compress)
	}
	conf := &container.Config{
		Image: image, Tty: b.tty, OpenStdin: true, StopSignal: "SIGKILL", Labels: map[string]string{"soak": "box"},
		Cmd: []string{"player", b.name, strconv.Itoa(b.rate), strconv.FormatInt(b.life.Milliseconds(), 10), strconv.Itoa(b.code)},
	}
	host := &container.HostConfig{LogConfig: logs, RestartPolicy: container.RestartPolicy{Name: b.policy}}
	if b.check > 0 {
		conf.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "player", "check", strconv.Itoa(b.period)}, Interval: b.check, Retries: 1, Timeout: bound}
	}
	if b.port {
		conf.ExposedPorts = network.PortSet{network.MustParsePort("80/tcp"): {}}
		host.PortBindings = network.PortMap{network.MustParsePort("80/tcp"): []network.PortBinding{{HostIP: netip.MustParseAddr("127.0.0.1")}}}
	}
	made, err := h.api.ContainerCreate(h.ctx, client.ContainerCreateOptions{Name: b.name, Config: conf, HostConfig: host})
	if err != nil {
		return err
	}
	b.id = made.ID
	if _, err := h.api.ContainerStart(h.ctx, b.id, client.ContainerStartOptions{}); err != nil {
		return err
	}
	c, err := h.api.ContainerInspect(h.ctx, b.id, client.ContainerInspectOptions{})
	if err != nil {
		return err
	}
	b.started, b.pid = c.Container.State.StartedAt, c.Container.State.Pid
	if b.port {
		bound := c.Container.NetworkSettings.Ports[network.MustParsePort("80/tcp")]
		if len(bound) == 0 {
			return fmt.Errorf("%s: no port is published", b.name)
		}
		b.address = "127.0.0.1:" + bound[0].HostPort
	}
	return nil
}

// those returns the containers for which keep is true.
func (h *house) those(keep func(*box) bool) (out []*box) {
	for _, b := range h.boxes {
		if keep(b) {
			out = append(out, b)
		}
	}
	return out
}

func steady(b *box) bool { return b.life == 0 }

// line is a line of a player.
type line struct{ run, n int }

// parse reads a line of a player. ok is false for another line.
func parse(text string) (l line, ok bool) {
	_, err := fmt.Sscanf(strings.TrimRight(text, "\r\n"), "%d %d the quick brown fox jumps over the lazy dog", &l.run, &l.n)
	return l, err == nil
}

// sequence checks that lines follow one another.
type sequence struct {
	last  line
	lines int
}

// next takes a line. It returns what is wrong with it, or "".
func (s *sequence) next(text string) string {
	l, ok := parse(text)
	if !ok {
		return fmt.Sprintf("line %q after %v", text, s.last)
	}
	last := s.last
	s.last = l
	s.lines++
	if last != (line{}) && l != (line{last.run, last.n + 1}) && l != (line{last.run + 1, 1}) {
		return fmt.Sprintf("line %v after %v", l, last)
	}
	return ""
}
