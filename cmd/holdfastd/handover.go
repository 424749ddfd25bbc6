// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"holdfast/internal/engine"
	"holdfast/internal/errs"
	"holdfast/internal/failpoint"
	"holdfast/internal/handoff"
	"holdfast/internal/version"
)

// Time limits of a handover. Running requests are waited for while new ones are
// still answered. Clients are held up only during the last two of these steps.
const (
	defaultWait  = 30 * time.Second       // for requests under way, such as pulls
	preparesIn   = 30 * time.Second       // for the successor to prepare
	settleFirst  = 300 * time.Millisecond // for short requests, while new ones are held back
	settleMost   = 2 * time.Second        // the same, in later tries
	restoresIn   = 20 * time.Second       // for the successor to restore
	servesIn     = 5 * time.Second        // for the successor to serve after that
	interruption = 10 * time.Millisecond  // how often a wait checks for signals

	// After these times the handover can be neither completed nor reverted.
	givesUpIn   = restoresIn + servesIn + 15*time.Second // includes the time of retiring
	takesBackIn = restoresIn
	// stopsIn is the remaining time once this process is asked to stop.
	stopsIn = 3 * time.Second
)

// errHandedOver ends the main loop: another process is the daemon now.
var errHandedOver = errors.New("handed over")

// upgrade is a handover that was requested through the API.
type upgrade struct {
	wait   time.Duration
	result chan<- upgraded
}

type upgraded struct {
	pid     int
	release string
	pause   time.Duration
	err     error
}

// handOver hands everything over to a successor. Only the main loop calls it,
// so no reload or stop happens meanwhile. errHandedOver means that this process
// is no longer the daemon. After any other error it serves again; fatal errors,
// after which it can't, also end the main loop.
func (d *daemon) handOver(s *handoff.Successor, signals <-chan os.Signal) (fatal error) {
	u := d.askedBy(s.Pid())
	began := time.Now()
	log := d.log.With("successor", s.Pid(), "version", s.Release)
	log.Info("Handing over")
	d.tell(d.notify.Status(fmt.Sprintf("handing over to process %d, version %s", s.Pid(), s.Release)))
	var pause time.Duration
	answer := func(err error) {
		if u != nil {
			u.result <- upgraded{s.Pid(), s.Release, pause, err}
		}
	}

	err := d.prepareHandOver(s, u, signals)
	if err != nil {
		// Nothing was closed yet, so only the gate has to be opened.
		d.gate.open(d.service.Handler())
		d.listeners.TakeBack()
		d.listeners.Resume()
		log.Error("the handover was refused, this daemon goes on", "error", err)
		s.Refuse(err)
		answer(err)
		d.tell(d.notify.Ready("ready; the last handover was refused: " + err.Error()))
		return nil
	}
	held := time.Now()
	err = d.within(givesUpIn, nil, func() error { return d.giveUp(s) })
	if err == nil {
		pause = time.Since(held)
		log.Info("Handed over", "took", time.Since(began).Round(time.Microsecond).String(), "pause", pause.Round(time.Microsecond).String())
		answer(nil)
		return errHandedOver
	}

	log.Error("the handover failed, this daemon takes everything back", "error", err)
	fatal = d.within(takesBackIn, signals, func() error {
		if err := s.Fence(err); err != nil {
			return err
		}
		failpoint.Here("handover.fenced")
		return d.takeBack()
	})
	if fatal != nil {
		err = fmt.Errorf("%w; and the previous state can't be restored: %w", err, fatal)
		answer(err)
		return err
	}
	d.status = "ready; the last handover failed: " + err.Error()
	answer(err)
	return nil
}

// within runs a step during which this process answers no one. A step that
// hangs, on a disk or an unreadable file, can't be interrupted. Then the
// process exits as in a crash, and the next daemon restores its state. signals
// may be nil. A signal to stop shortens the time for the step.
func (d *daemon) within(limit time.Duration, signals <-chan os.Signal, step func() error) error {
	done := make(chan error, 1)
	go func() { done <- step() }()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		select {
		case err := <-done:
			return err
		case sig := <-signals:
			d.pending = append(d.pending, sig)
			if sig == unix.SIGTERM || sig == unix.SIGINT {
				timer.Reset(min(limit, stopsIn))
			}
		case <-timer.C:
			d.log.Error("the handover hangs and can't be reverted: this daemon exits, and the next one restores its state")
			os.Exit(1)
		}
	}
}

// prepareHandOver waits for a moment without running requests that would be
// lost. Afterwards the gate is shut and accepting is paused.
func (d *daemon) prepareHandOver(s *handoff.Successor, u *upgrade, signals <-chan os.Signal) error {
	for what, pair := range map[string][2]string{"data root": {s.DataRoot, d.cfg.DataRoot}, "exec root": {s.ExecRoot, d.cfg.ExecRoot}} {
		if pair[0] != pair[1] {
			return errs.Invalid("the new daemon has the %s %s, this one has %s: a takeover can't change it, stop and start the daemon instead", what, pair[0], pair[1])
		}
	}
	sockets, err := d.listeners.HandOver()
	if err != nil {
		return err
	}
	defer func() {
		for _, l := range sockets {
			l.File.Close()
		}
	}()
	if err := s.Welcome(version.Version, sockets, d.lock); err != nil {
		return err
	}
	failpoint.Here("handover.welcomed")
	if err := s.Prepared(preparesIn); err != nil {
		return err
	}
	failpoint.Here("handover.asked")
	wait := defaultWait
	if u != nil {
		wait = u.wait
	}
	deadline := time.Now().Add(wait)
	settle := settleFirst
	for {
		d.listeners.Pause()
		d.gate.shut()
		under := d.gate.settled(settle)
		containers := d.service.Busy()
		if len(under) == 0 && len(containers) == 0 {
			failpoint.Here("handover.paused")
			return nil
		}
		// An operation takes long. Let clients continue meanwhile.
		d.gate.open(d.service.Handler())
		d.listeners.Resume()
		settle = min(2*settle, settleMost)
		busy := slices.Clone(containers)
		for _, r := range under {
			busy = append(busy, fmt.Sprintf("%s for %s", r.what, time.Since(r.began).Round(time.Second)))
		}
		if err := s.Waiting(busy); err != nil {
			return err
		}
		if err := d.calmDown(under, containers, deadline, signals); err != nil {
			return fmt.Errorf("%w: still under way: %s", err, strings.Join(busy, ", "))
		}
	}
}

// calmDown waits until none of these requests is running, and each of these
// containers was idle once. It does not wait for requests that begin meanwhile,
// because under constant load that would never end.
func (d *daemon) calmDown(these []request, containers []string, deadline time.Time, signals <-chan os.Signal) error {
	tick := time.NewTicker(interruption)
	defer tick.Stop()
	for {
		left, changed := d.gate.waited()
		still := 0
		for _, r := range left {
			for _, t := range these {
				if r.what == t.what && r.began.Equal(t.began) {
					still++
				}
			}
		}
		busy := d.service.Busy()
		containers = slices.DeleteFunc(containers, func(c string) bool { return !slices.Contains(busy, c) })
		if still == 0 && len(containers) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return errdefs.ErrUnavailable.WithMessage("the daemon is too busy to hand over, try again later or with a longer wait")
		}
		select {
		case <-changed:
		case <-tick.C: // containers send no event when they become idle
		case sig := <-signals:
			d.pending = append(d.pending, sig)
			if sig == unix.SIGTERM || sig == unix.SIGINT {
				return errdefs.ErrUnavailable.WithMessage("the daemon is stopping")
			}
		}
	}
}

// giveUp closes what is exclusive and lets the successor take it. After an
// error the successor may still be running: it must be fenced before anything
// is taken back.
func (d *daemon) giveUp(s *handoff.Successor) error {
	clients, err := d.service.Retire(context.Background())
	d.clients = clients
	if err != nil {
		return err
	}
	failpoint.Here("handover.retired")
	give := make([]handoff.Client, len(clients))
	for i, c := range clients {
		at, err := json.Marshal(c.Attach)
		if err != nil {
			return err
		}
		give[i] = handoff.Client{Container: c.Container, Attach: at, File: c.File}
	}
	if err := s.Yours(give); err != nil {
		return err
	}
	failpoint.Here("handover.given")
	if err := s.Ready(restoresIn); err != nil {
		return err
	}
	failpoint.Here("handover.ready")
	if err := s.Go(servesIn); err != nil {
		return err
	}
	failpoint.Here("handover.serving")
	// The service manager accepts the name of the new main process only from
	// the present one.
	d.tell(d.notify.Successor(s.Pid()))
	if err := s.Released(); err != nil {
		d.log.Warn("the successor could not be notified that the handover is complete", "error", err)
	}
	for _, c := range clients {
		c.File.Close()
	}
	return nil
}

// takeBack makes this process the daemon again. It restores from the files as
// at a start, because the successor may have changed them.
func (d *daemon) takeBack() error {
	// These files only inform users, so an error must not prevent managing the
	// containers.
	if err := d.lock.Rewrite(); err != nil {
		d.log.Warn("the lock file still names another process", "error", err)
	}
	if _, err := handoff.WritePidfile(d.cfg.PidfilePath()); err != nil {
		d.log.Warn("the pid file still names another process", "error", err)
	}
	if err := d.sayRoots(); err != nil {
		d.log.Warn("commands will not find the containers while no daemon is running", "error", err)
	}
	next, err := compose(context.Background(), d.cfg, d.shim, d, d.log, start{handedOver: true, resume: d.service.Life(), keeper: d.keeper, manager: d.manager})
	if err != nil {
		return err
	}
	// The retired service continues for the streams that it still serves.
	go d.closeRetired(d.service, time.Now())
	d.service = next
	if err := next.Restore(context.Background()); err != nil {
		return fmt.Errorf("restore containers and networks: %w", err)
	}
	if err := next.TakeClients(d.clients); err != nil {
		d.log.Warn(err.Error())
	}
	d.listeners.TakeBack()
	d.gate.open(next.Handler())
	d.listeners.Resume()
	return nil
}

// closeRetired closes a service that was retired for a failed handover, once it
// serves no more streams.
func (d *daemon) closeRetired(s service, since time.Time) {
	d.gate.without(func(r *request) bool { return r.began.Before(since) })
	if err := s.Close(); err != nil {
		d.log.Warn("could not close cleanly", "error", err)
	}
}

// linger serves the remaining connections of this process while there are any
// and a daemon is running. Streams continue from files and from the shims. A
// new request on an old connection is forwarded to the daemon.
func (d *daemon) linger(s *handoff.Successor, signals <-chan os.Signal) {
	d.leaving.Store(true)
	d.keeper.Close()
	d.listeners.Close()
	d.lock.Release()
	d.control.Leave()
	d.gate.open(forwarder(func(ctx context.Context) (net.Conn, error) { return handoff.DialForward(ctx, d.cfg.ExecRoot) }))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		handoff.Follow(ctx, d.cfg.ExecRoot)
		cancel()
	}()
	go func() {
		// Signals received during the handover were meant for the daemon, which
		// is now the successor.
		for _, sig := range d.pending {
			_ = s.Signal(sig.(unix.Signal))
		}
		for {
			select {
			case sig := <-signals:
				switch sig {
				case unix.SIGTERM, unix.SIGINT:
					cancel()
				case unix.SIGHUP:
				default:
					d.handle(ctx, sig)
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	d.gate.deserted(ctx)
	s.Close()
}

// meet announces this process to the running daemon. It returns nil if there is
// none.
func (d *daemon) meet(ctx context.Context) (*handoff.Predecessor, error) {
	p, err := handoff.Meet(ctx, d.cfg.DataRoot, d.cfg.ExecRoot, version.Version)
	if errdefs.IsNotFound(err) {
		d.log.Info("no daemon to take over from, starting as usual", "exec-root", d.cfg.ExecRoot)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	d.log.Info("Taking over", "version", version.Version, "pid", os.Getpid(), "from", p.Pid(), "its-version", p.Release)
	failpoint.Here("takeover.welcomed")
	return p, nil
}

// take waits until everything belongs to this process.
func (d *daemon) take(p *handoff.Predecessor) ([]engine.PendingClient, error) {
	given, err := p.Take(func(what []string) {
		d.log.Info("The old daemon waits for running requests", "requests", strings.Join(what, ", "))
	})
	if errors.Is(err, handoff.ErrDied) {
		d.log.Warn("the old daemon died during the handover: restoring its state")
		err = nil
	}
	if err != nil {
		return nil, err
	}
	failpoint.Here("takeover.taken")
	if d.lock, err = handoff.Adopt(p.Locks, d.cfg.DataRoot, d.cfg.ExecRoot); err != nil {
		return nil, err
	}
	clients := make([]engine.PendingClient, len(given))
	for i, c := range given {
		clients[i] = engine.PendingClient{Container: c.Container, File: c.File}
		if err := json.Unmarshal(c.Attach, &clients[i].Attach); err != nil {
			return nil, fmt.Errorf("a client of container %s: %w", c.Container, err)
		}
	}
	return clients, nil
}

// restoreTaken restores everything before the first connection is accepted. So
// until the end the old daemon can continue as if nothing had happened.
func (d *daemon) restoreTaken(p *handoff.Predecessor, clients []engine.PendingClient) error {
	failpoint.Here("takeover.composed")
	if err := d.service.Restore(context.Background()); err != nil {
		return fmt.Errorf("restore containers and networks: %w", err)
	}
	failpoint.Here("takeover.restored")
	if err := p.Ready(); err != nil && !errors.Is(err, handoff.ErrDied) {
		return err
	}
	failpoint.Here("takeover.go")
	if err := d.service.TakeClients(clients); err != nil {
		d.log.Warn(err.Error())
	}
	return nil
}

func unavailable(format string, args ...any) error {
	return errs.Unavailable(format, args...)
}
