// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/api/guard"
	"holdfast/internal/config"
	"holdfast/internal/engine"
	"holdfast/internal/failpoint"
	"holdfast/internal/handoff"
	"holdfast/internal/handoff/systemd"
	"holdfast/internal/store"
	"holdfast/internal/version"
)

// service is what the daemon serves: the engine and its API. compose builds it.
type service interface {
	// Handler answers reads as soon as it is returned.
	Handler() http.Handler
	// Restore finds the state of all objects after a time without a daemon, and
	// manages them again. After an error nothing must be managed; running
	// containers are left running.
	Restore(ctx context.Context) error
	// Running returns the number of running containers.
	Running() int
	// Busy names the operations that must not be interrupted.
	Busy() []string
	// Retire closes what only one process may have open, and returns the
	// clients that only this process holds. After that, requests that only
	// follow continue, and no others may be made. After an error, too, only
	// Close may be called.
	Retire(ctx context.Context) ([]engine.PendingClient, error)
	// TakeClients takes over the clients that a Retire has returned. It is
	// called after Restore.
	TakeClients([]engine.PendingClient) error
	// Life is the number of this daemon's life.
	Life() uint64
	// Reloaders apply a new configuration, in this order.
	Reloaders() []config.Reloader
	// Shutdown stops what must not outlive the daemon: nothing with
	// live-restore, otherwise every container, with its stop signal and
	// time-out. hostToo means that the host shuts down as well, which ends all
	// containers anyway.
	Shutdown(ctx context.Context, hostToo bool) error
	// Close closes files, after the last request.
	Close() error
}

// daemon is a running holdfastd.
type daemon struct {
	flags  *config.Flags
	cfg    *config.Config // written only by the main loop
	log    *slog.Logger
	level  *slog.LevelVar
	notify *handoff.Notifier

	service   service
	listeners *handoff.Listeners
	server    *http.Server
	// requests ends when requests must end. Endless streams watch it.
	requests    context.Context
	endRequests context.CancelFunc
	gate        *gate
	guard       *guard.Guard
	failed      chan error                 // error of a listener
	tasks       chan func(context.Context) // functions that the API runs in the main loop
	ready       bool                       // the service manager knows that the daemon is ready

	// For a handover; see handover.go and upgrade.go.
	inherited *handoff.Inherited
	keeper    *handoff.Keeper
	manager   *systemd.Manager // nil without systemd
	lock      *handoff.Lock
	pidfile   *handoff.Pidfile
	control   *handoff.Control // nil if no other daemon can take over
	shim      string
	binary    string   // path from which this process was started
	environ   []string // environment with which it was started
	leaving   atomic.Bool
	away      atomic.Bool // the main loop hands over or stops, which may take long
	upgrades  upgrades
	clients   []engine.PendingClient // clients that are being handed over
	pending   []os.Signal            // signals received meanwhile
	status    string                 // shown by the service manager
}

// serve runs the daemon until a signal ends it. Every start has the same order,
// after a clean stop and after a crash: lock, read the files, listen and
// answer, find out what runs, report ready.
func serve(flags *config.Flags, cfg *config.Config) error {
	if os.Geteuid() != 0 {
		return errors.New("holdfastd needs to be started with root privileges")
	}
	d := &daemon{
		flags: flags, cfg: cfg, level: new(slog.LevelVar), failed: make(chan error, 1), tasks: make(chan func(context.Context)),
		gate: newGate(), environ: os.Environ(), status: "ready",
	}
	d.notify = handoff.NewNotifier()
	if d.notify.Listens() {
		d.manager = systemd.Find()
	}
	d.binary, _ = os.Executable()
	d.log = newLogger(os.Stderr, cfg, d.level)
	d.keeper = handoff.NewKeeper(d.notify, d.log)
	d.inherited = handoff.FromServiceManager()
	d.keeper.Found(d.inherited)
	slog.SetDefault(d.log)
	settle(cfg, d.log)
	reapOrphans(d.log)
	signals := catchSignals()
	started := time.Now()
	grown := growFreely()

	shim, err := findShim(cfg)
	if err != nil {
		return err
	}
	d.shim = shim
	var before *handoff.Predecessor
	if flags.Takeover {
		if before, err = d.meet(context.Background()); err != nil {
			return err
		}
	}
	begun := make(chan struct{})
	if before != nil {
		go d.heedWhile(begun, signals, before)
	}
	err = d.begin(before)
	close(begun)
	if err != nil {
		if before != nil {
			before.Failed(err)
		}
		return err
	}
	defer func() { d.lock.Release() }()
	defer d.pidfile.Remove()
	defer func() {
		if err := d.service.Close(); err != nil {
			d.log.Warn("could not close cleanly", "error", err)
		}
	}()
	defer d.listeners.Remove()
	defer d.hangUp()
	d.serveAPI()
	if before != nil {
		failpoint.Here("takeover.serving")
		before.Serving()
	}
	// The service manager accepts messages only from the main process, which a
	// successor becomes only now.
	if err := d.listeners.Store(d.notify, d.inherited); err != nil {
		d.log.Warn("the service manager could not store the sockets: requests during a restart will be refused", "error", err)
	}
	d.keeper.Open()
	err = d.loop(signals, started, before != nil, grown)
	if err != nil {
		// After a failure, closing may hang too.
		time.AfterFunc(endsIn, func() { os.Exit(1) })
	}
	return err
}

// endsIn is how long a failed daemon may take to exit.
const endsIn = 15 * time.Second

// heedWhile ends a successor that is asked to stop before it has become the
// daemon. The old daemon, or the next one, completes what it has begun.
func (d *daemon) heedWhile(begun <-chan struct{}, signals <-chan os.Signal, before *handoff.Predecessor) {
	for {
		select {
		case <-begun:
			return
		case s := <-signals:
			if s == unix.SIGTERM || s == unix.SIGINT {
				d.log.Info(fmt.Sprintf("Processing signal '%s' before the takeover is done", s))
				before.Failed(unavailable("the new daemon was asked to stop"))
				os.Exit(1)
			}
		}
	}
}

// begin runs before the first connection is accepted. In a successor it also
// restores, and if it fails it leaves all files as they are.
func (d *daemon) begin(before *handoff.Predecessor) (err error) {
	var undo []func()
	defer func() {
		if err != nil {
			for _, fn := range slices.Backward(undo) {
				fn()
			}
		}
	}()
	ctx := context.Background()
	var clients []engine.PendingClient
	if before != nil {
		clients, err = d.take(before)
	} else if err = store.CheckForeign(d.cfg.DataRoot); err == nil {
		d.lock, err = handoff.Acquire(ctx, d.cfg.DataRoot, d.cfg.ExecRoot)
	}
	if err != nil {
		return err
	}
	undo = append(undo, d.lock.Release)
	if d.pidfile, err = handoff.WritePidfile(d.cfg.PidfilePath()); err != nil {
		return err
	}
	undo = append(undo, d.pidfile.Remove)
	d.log.Info("Starting up", "version", version.Version, "commit", version.Commit, "pid", os.Getpid(), "data-root", d.cfg.DataRoot, "exec-root", d.cfg.ExecRoot, "live-restore", d.cfg.LiveRestore)
	for _, w := range d.cfg.Warnings() {
		d.log.Warn(w)
	}
	if d.service, err = compose(ctx, d.cfg, d.shim, d, d.log, start{handedOver: before != nil, keeper: d.keeper, manager: d.manager}); err != nil {
		return err
	}
	undo = append(undo, func() { _ = d.service.Close() })
	if err := d.listen(before); err != nil {
		return err
	}
	undo = append(undo, func() { d.listeners.Close(); d.listeners.Remove() })
	if before == nil {
		return nil
	}
	d.listeners.Keep() // until the handover is complete they belong to the old daemon
	if err := d.restoreTaken(before, clients); err != nil {
		return err
	}
	d.listeners.TakeBack()
	return nil
}

// listen opens the sockets, or takes them over from a predecessor. Connections
// wait in their backlog.
func (d *daemon) listen(before *handoff.Predecessor) error {
	var conf *tls.Config
	if d.cfg.UseTLS() {
		var err error
		if conf, err = handoff.ServerTLS(tlsFiles(d.cfg)); err != nil {
			return err
		}
	}
	var control *os.File
	if before != nil {
		d.inherited, control = handoff.FromPredecessor(before.Sockets), before.Control
	}
	var err error
	d.listeners, err = handoff.Listen(context.Background(), handoff.ListenOptions{
		Addresses: d.cfg.Addresses(), Group: d.cfg.Group, GroupRequired: d.cfg.Given("group"),
		TLS: conf, Inherited: d.inherited, Log: d.log,
	})
	if err != nil {
		return err
	}
	if err := errors.Join(d.sayRoots(), d.share()); err != nil {
		d.log.Warn("commands will not find the containers while no daemon is running", "error", err)
	}

	if d.control, err = handoff.ListenControl(context.Background(), d.cfg.ExecRoot, control, d.log); err != nil {
		d.log.Warn("no other daemon can take over from this one: an upgrade needs a restart", "error", err)
	}
	return nil
}

// maxHead bounds the head of a request, in bytes. The credentials of some dozen
// registries fit into it.
const maxHead = 256 << 10

// serveAPI starts to accept connections and to answer requests.
func (d *daemon) serveAPI() {
	d.requests, d.endRequests = context.WithCancel(context.Background())
	d.gate.open(d.service.Handler())
	// The guard is in front of the gate, because requests forwarded to a
	// successor arrive there over a Unix socket.
	d.guard = guard.New(d.gate, d.guardRules(d.cfg), d.log)
	d.server = &http.Server{
		Handler: giveBackMemory(d.guard),
		// A client may pause within a head, but not for ever. Bodies and
		// answers are streams without a limit.
		ReadHeaderTimeout: time.Minute,
		IdleTimeout:       10 * time.Minute,
		MaxHeaderBytes:    maxHead,
		BaseContext:       func(net.Listener) context.Context { return d.requests },
		ErrorLog:          slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
		Protocols:         new(http.Protocols),
		ConnState:         d.gate.track,
		ConnContext:       withConn,
	}
	d.server.Protocols.SetHTTP1(true)
	accept := func(l net.Listener, address string) {
		if err := d.server.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) && !d.leaving.Load() {
			select {
			case d.failed <- fmt.Errorf("serve the API on %s: %w", address, err):
			default: // one error is enough to end the daemon
			}
		}
	}
	for _, l := range d.listeners.All() {
		d.log.Info("API listen on " + l.Shown())
		go accept(l, l.Address)
	}
	if d.control != nil {
		go d.control.Serve()
		go func() { _ = d.server.Serve(d.control.Forwarded) }() // it ends when the control is closed
	}
}

// loop is the main loop between the start and the end. grown is called at the
// end of the start.
func (d *daemon) loop(signals <-chan os.Signal, started time.Time, isRestored bool, grown func()) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	main, noMore := context.WithCancel(ctx)
	defer noMore()
	go d.notify.Watch(main, d.works, func(err error) {
		d.log.Error("the daemon is not working: the service manager's watchdog is not notified", "error", err)
	})
	restored := make(chan error, 1)
	if isRestored {
		restored <- nil
	} else {
		go func() { restored <- d.service.Restore(ctx) }()
	}
	var successors chan *handoff.Successor // nil while there is nothing to hand over
	for {
		if len(d.pending) > 0 {
			s := d.pending[0]
			d.pending = d.pending[1:]
			if d.handle(ctx, s) {
				return d.stop(s, signals)
			}
			continue
		}
		select {
		case err := <-restored:
			grown()
			if err != nil {
				return fmt.Errorf("restore containers and networks: %w", err)
			}
			d.log.Info("Daemon has completed initialization", "took", time.Since(started).Round(time.Microsecond).String())
			d.ready = true
			d.tell(d.notify.Ready(d.status))
			if d.control != nil {
				successors = d.control.Successors
			}
		case s := <-successors:
			d.away.Store(true)
			err := d.handOver(s, signals)
			d.away.Store(false)
			if errors.Is(err, errHandedOver) {
				noMore()
				d.linger(s, signals)
				return nil
			} else if err != nil {
				return err
			}
			d.tell(d.notify.Ready(d.status))
		case err := <-d.failed:
			return err
		case task := <-d.tasks:
			task(ctx)
		case s := <-signals:
			if d.handle(ctx, s) {
				return d.stop(s, signals)
			}
		}
	}
}

// stop stops what must end with the daemon. Requests are still answered
// meanwhile: a client that waits for the end of a container gets its answer.
func (d *daemon) stop(s os.Signal, signals <-chan os.Signal) error {
	d.away.Store(true)
	d.log.Info(fmt.Sprintf("Processing signal '%s'", s), "live-restore", d.cfg.LiveRestore)
	d.tell(d.notify.Stopping())
	go forceOn(signals, d.log)
	down, err := d.manager.GoesDown(context.Background())
	switch {
	case err != nil:
		d.log.Warn("it is not known whether the system goes down, the daemon stops as if it did not", "error", err)
	case down && d.cfg.LiveRestore:
		d.log.Info("The system is shutting down: stopping all containers")
	}
	if err := d.service.Shutdown(context.Background(), down); err != nil {
		d.log.Error("some containers could not be stopped", "error", err)
	}
	if d.control != nil {
		// Older processes that still serve a stream end together with the
		// daemon.
		d.control.Close(requestGrace)
	}
	d.log.Info("Daemon shutdown complete")
	return nil
}

// tell logs an error of a notification to the service manager.
func (d *daemon) tell(err error) {
	if err != nil {
		d.log.Warn(err.Error())
	}
}
