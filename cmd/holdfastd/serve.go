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

	"holdfast/internal/api/wire"
	"holdfast/internal/config"
	"holdfast/internal/engine"
	"holdfast/internal/failpoint"
	"holdfast/internal/handoff"
	"holdfast/internal/version"
)

// service is what the daemon serves: the engine behind its API. compose makes
// it.
type service interface {
	// Handler answers reads from the moment that it is called.
	Handler() http.Handler
	// Restore finds out what became of everything while no daemon lived, and
	// takes it up again. An error means that nothing should be managed; what
	// runs is left running.
	Restore(ctx context.Context) error
	// Running is how many containers run.
	Running() int
	// Busy names what is being done that must not be interrupted.
	Busy() []string
	// Retire closes what only one process may have open, and gives the clients
	// that are this process's alone. From then on requests that only follow go
	// on, and no other may come. After an error too, only Close is left.
	Retire(ctx context.Context) ([]engine.PendingClient, error)
	// TakeClients takes over what a Retire gave, after Restore.
	TakeClients([]engine.PendingClient) error
	// Life is the number of this daemon's life.
	Life() uint64
	// Reloaders take a new configuration, in this order.
	Reloaders() []config.Reloader
	// Shutdown ends what is to end with the daemon: with live-restore nothing,
	// without it every container, by its stop signal and in its time.
	Shutdown(ctx context.Context) error
	// Close lets go of files, after the last request.
	Close() error
}

// daemon is a running holdfastd.
type daemon struct {
	flags  *config.Flags
	cfg    *config.Config // only the main loop writes it
	log    *slog.Logger
	level  *slog.LevelVar
	notify *handoff.Notifier

	service   service
	listeners *handoff.Listeners
	server    *http.Server
	// requests ends when requests are to end: streams that go on for ever
	// hang on it.
	requests    context.Context
	endRequests context.CancelFunc
	gate        *gate
	failed      chan error                 // from a listener that broke
	tasks       chan func(context.Context) // for the main loop, from the API
	ready       bool                       // and the service manager knows it

	// For a handover; see handover.go and upgrade.go.
	inherited *handoff.Inherited
	keeper    *handoff.Keeper
	lock      *handoff.Lock
	pidfile   *handoff.Pidfile
	control   *handoff.Control // nil: no other daemon can take over
	shim      string
	binary    string   // that this process was started from
	environ   []string // that it was started with
	leaving   atomic.Bool
	upgrades  upgrades
	clients   []engine.PendingClient // while they are handed over
	pending   []os.Signal            // that came meanwhile
	status    string                 // shown by the service manager
}

// serve runs the daemon until a signal ends it. The order is that of every
// start, after a clean stop or after a crash: lock, read what is on disk,
// listen and answer, find out what runs, say ready.
func serve(flags *config.Flags, cfg *config.Config) error {
	if os.Geteuid() != 0 {
		return errors.New("holdfastd needs to be started with root privileges")
	}
	d := &daemon{
		flags: flags, cfg: cfg, level: new(slog.LevelVar), failed: make(chan error, 1), tasks: make(chan func(context.Context)),
		gate: newGate(), environ: os.Environ(), status: "ready",
	}
	d.notify = handoff.NewNotifier()
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
	if err := d.begin(before); err != nil {
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
	// The service manager hears the process that it knows, which a successor is
	// only now.
	if err := d.listeners.Store(d.notify, d.inherited); err != nil {
		d.log.Warn("the service manager keeps no copies of the sockets: requests during a restart will be refused", "error", err)
	}
	d.keeper.Open()
	return d.loop(signals, started, before != nil, grown)
}

// begin does what comes before the first connection is accepted. A successor
// restores in it, and leaves all files as they are when it fails.
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
	} else {
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
	if d.service, err = compose(ctx, d.cfg, d.shim, d, d.log, start{handedOver: before != nil, keeper: d.keeper}); err != nil {
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
	d.listeners.Keep() // until this process is the daemon they are the other's
	if err := d.restoreTaken(before, clients); err != nil {
		return err
	}
	d.listeners.TakeBack()
	return nil
}

// listen opens the sockets, or takes them from a predecessor. Connections wait
// in them.
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
		d.log.Warn("commands will not find the containers while no daemon lives", "error", err)
	}

	if d.control, err = handoff.ListenControl(context.Background(), d.cfg.ExecRoot, control, d.log); err != nil {
		d.log.Warn("no other daemon can take over from this one: an upgrade needs a restart", "error", err)
	}
	return nil
}

// serveAPI starts to accept and to answer.
func (d *daemon) serveAPI() {
	d.requests, d.endRequests = context.WithCancel(context.Background())
	d.gate.open(d.service.Handler())
	d.server = &http.Server{
		Handler: giveBackMemory(d.gate),
		// A client may think between its head's first and last byte, but not
		// for ever; bodies and answers are streams without a limit.
		ReadHeaderTimeout: 5 * time.Minute,
		IdleTimeout:       10 * time.Minute,
		BaseContext:       func(net.Listener) context.Context { return d.requests },
		ErrorLog:          slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
		Protocols:         new(http.Protocols),
		ConnState:         d.gate.track,
		ConnContext:       wire.WithConn,
	}
	d.server.Protocols.SetHTTP1(true)
	accept := func(l net.Listener, address string) {
		if err := d.server.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) && !d.leaving.Load() {
			select {
			case d.failed <- fmt.Errorf("serve the API on %s: %w", address, err):
			default: // one is enough to end the daemon
			}
		}
	}
	for _, l := range d.listeners.All() {
		d.log.Info("API listen on " + l.Shown())
		go accept(l, l.Address)
	}
	if d.control != nil {
		go d.control.Serve()
		go func() { _ = d.server.Serve(d.control.Forwarded) }() // it ends with the control
	}
}

// loop lives the daemon's life between the start and the end.
// grown is called at the end of the start.
func (d *daemon) loop(signals <-chan os.Signal, started time.Time, isRestored bool, grown func()) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	main, noMore := context.WithCancel(ctx)
	defer noMore()
	go d.notify.Watch(main)
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
				return fmt.Errorf("restore what was there: %w", err)
			}
			d.log.Info("Daemon has completed initialization", "took", time.Since(started).Round(time.Microsecond).String())
			d.ready = true
			d.tell(d.notify.Ready(d.status))
			if d.control != nil {
				successors = d.control.Successors
			}
		case s := <-successors:
			if err := d.handOver(s, signals); errors.Is(err, errHandedOver) {
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

// stop ends what is to end, while requests are still answered: a client that
// waits for a container that is being stopped gets its answer.
func (d *daemon) stop(s os.Signal, signals <-chan os.Signal) error {
	d.log.Info(fmt.Sprintf("Processing signal '%s'", s), "live-restore", d.cfg.LiveRestore)
	d.tell(d.notify.Stopping())
	go forceOn(signals, d.log)
	if err := d.service.Shutdown(context.Background()); err != nil {
		d.log.Error("not everything could be stopped", "error", err)
	}
	if d.control != nil {
		// Those that still serve a stream end with the daemon.
		d.control.Close(requestGrace)
	}
	d.log.Info("Daemon shutdown complete")
	return nil
}

// tell logs what the service manager could not be told.
func (d *daemon) tell(err error) {
	if err != nil {
		d.log.Warn(err.Error())
	}
}
