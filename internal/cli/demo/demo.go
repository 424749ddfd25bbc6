// SPDX-License-Identifier: Apache-2.0

//go:build linux

package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
)

const (
	containerName = "demo"
	// watchAlive is how long the container is watched before the daemon is
	// killed, and again once it is back. watchDead is how long no daemon runs.
	watchAlive = 2 * time.Second
	watchDead  = 3 * time.Second
	// patience bounds each step.
	patience = 10 * time.Second
)

// Options are what to run and where to write.
type Options struct {
	// Daemon is the path of holdfastd. Empty means the one beside this program.
	Daemon string
	Out    io.Writer
	// DaemonLog receives the daemon's log. If it is nil the log is shown only
	// after a failure.
	DaemonLog io.Writer
}

// Run runs the demo. The error names the broken promise, or the reason why the
// demo could not run. When ctx ends, its cause is returned. In any case
// everything is cleaned up.
func Run(ctx context.Context, o Options) (err error) {
	binary, err := preflight(o.Daemon)
	if err != nil {
		return err
	}
	d, err := newDemo(binary, o)
	if err != nil {
		return err
	}
	defer func() {
		interrupted := err != nil && ctx.Err() != nil
		if interrupted {
			err = context.Cause(ctx)
			d.say("interrupted, cleaning up")
		} else if err != nil {
			d.daemon.showLog(o.Out)
		}
		left := d.cleanUp()
		if interrupted && left != nil {
			// An interruption by itself is not printed.
			d.say("%v", left)
		}
		err = errors.Join(err, left)
	}()
	return d.run(ctx)
}

// preflight finds the daemon. Its error names a missing requirement.
func preflight(binary string) (string, error) {
	if os.Geteuid() != 0 {
		return "", errors.New("the demo starts a daemon and a container: run it as root")
	}
	if binary == "" {
		self, err := os.Executable()
		if err != nil {
			return "", err
		}
		binary = filepath.Join(filepath.Dir(self), "holdfastd")
	}
	if _, err := os.Stat(binary); err != nil {
		return "", fmt.Errorf("no daemon to start: %w; build it with 'make build', or name it with --daemon", err)
	}
	if _, err := exec.LookPath("runc"); err != nil {
		return "", errors.New("runc is not installed; install it (on Debian: apt-get install runc), or use 'make demo', which does")
	}
	return binary, nil
}

// demo is one run of the demo.
type demo struct {
	out    io.Writer
	begin  time.Time
	root   string
	daemon *daemon
	api    *client.Client
	asked  bool   // the container was requested, so it may exist
	id     string // of the container, once it is known
}

func newDemo(binary string, o Options) (*demo, error) {
	root, err := os.MkdirTemp("", "holdfast-demo-")
	if err != nil {
		return nil, err
	}
	d := &demo{out: o.Out, begin: time.Now(), root: root}
	if d.daemon, err = newDaemon(binary, root, o.DaemonLog); err == nil {
		d.api, err = client.New(client.WithHost("unix://" + d.daemon.socket))
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(root))
	}
	return d, nil
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "%6.2fs  %s\n", time.Since(d.begin).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) run(ctx context.Context) error {
	d.say("starting a private daemon in %s", d.root)
	if err := d.startDaemon(ctx); err != nil {
		return err
	}
	d.say("daemon ready, pid %d, live-restore on", d.daemon.pid())

	if err := d.loadImage(ctx); err != nil {
		return err
	}
	d.say("loaded the image %s", imageRef)
	log := newLogWatch(d.api)
	before, address, err := d.startContainer(ctx, log)
	if err != nil {
		return err
	}
	d.say("container running, pid %d, port 8080 is at %s", before.Pid, address)

	probing, stopProbing := context.WithCancel(ctx)
	defer stopProbing()
	probe := startProbe(probing, "http://"+address+"/")
	d.say("requesting the port every %s and following the log", probeEvery)
	if err := wait(ctx, watchAlive); err != nil {
		return err
	}

	pid := d.daemon.pid()
	killed := time.Now()
	if err := d.daemon.kill(); err != nil {
		return err
	}
	d.say("killed the daemon with -9")
	if err := wait(ctx, watchDead/2); err != nil {
		return err
	}
	d.say("no daemon is running; %d requests answered since, %d failed", probe.since(killed).answered, probe.since(killed).failed)
	if err := wait(ctx, watchDead/2); err != nil {
		return err
	}

	restarted := time.Now()
	if err := d.startDaemon(ctx); err != nil {
		return fmt.Errorf("start the daemon again: %w", err)
	}
	ready := time.Now()
	d.say("daemon ready again, pid %d, after %d ms", d.daemon.pid(), ready.Sub(restarted).Milliseconds())
	if err := log.resume(ctx, d.id); err != nil {
		return err
	}
	after, err := d.inspect(ctx)
	if err != nil {
		return err
	}
	if err := wait(ctx, watchAlive); err != nil {
		return err
	}
	stopProbing()

	lines, err := readLog(ctx, d.api, d.id)
	if err != nil {
		return err
	}
	r := report{
		before: before, after: *after.State,
		restartsBefore: 0, restartsAfter: after.RestartCount,
		daemonBefore: pid, daemonAfter: d.daemon.pid(),
		killed: killed, ready: ready,
		requests: probe.results(),
		log:      lines,
		followed: log.result(),
	}
	d.say("done\n")
	return r.print(d.out)
}

func (d *demo) startDaemon(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("the daemon was not ready after %s", patience))
	defer cancel()
	return d.daemon.start(ctx)
}

func (d *demo) loadImage(ctx context.Context) error {
	archive, err := image()
	if err != nil {
		return err
	}
	defer archive.Close()
	answer, err := d.api.ImageLoad(ctx, archive)
	if err != nil {
		return fmt.Errorf("load the demo's image: %w", err)
	}
	defer answer.Close()
	for dec := json.NewDecoder(answer); ; {
		var m jsonstream.Message
		switch err := dec.Decode(&m); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("load the demo's image: %w", err)
		case m.Error != nil:
			return fmt.Errorf("load the demo's image: %w", m.Error)
		}
	}
}

// startContainer returns once the container's log shows that its port accepts
// connections.
func (d *demo) startContainer(ctx context.Context, log *logWatch) (container.State, string, error) {
	port := network.MustParsePort("8080/tcp")
	d.asked = true
	created, err := d.api.ContainerCreate(ctx, client.ContainerCreateOptions{
		Name:   containerName,
		Config: &container.Config{Image: imageRef},
		HostConfig: &container.HostConfig{
			PortBindings: network.PortMap{port: {{HostIP: netip.MustParseAddr("127.0.0.1")}}},
			CapDrop:      []string{"ALL"},
		},
	})
	if err != nil {
		return container.State{}, "", err
	}
	d.id = created.ID
	if _, err := d.api.ContainerStart(ctx, d.id, client.ContainerStartOptions{}); err != nil {
		return container.State{}, "", err
	}
	if err := log.start(ctx, d.id); err != nil {
		return container.State{}, "", err
	}
	c, err := d.inspect(ctx)
	if err != nil {
		return container.State{}, "", err
	}
	for _, b := range c.NetworkSettings.Ports[port] {
		if b.HostPort != "" {
			return *c.State, b.HostIP.String() + ":" + b.HostPort, nil
		}
	}
	return container.State{}, "", errors.New("the container runs, but its port was not published")
}

func (d *demo) inspect(ctx context.Context) (container.InspectResponse, error) {
	c, err := d.api.ContainerInspect(ctx, d.id, client.ContainerInspectOptions{})
	if err != nil {
		return container.InspectResponse{}, err
	}
	if c.Container.State == nil || c.Container.NetworkSettings == nil {
		return container.InspectResponse{}, errors.New("the daemon's answer to inspect has no state")
	}
	return c.Container, nil
}

// wait returns after d, or when ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
