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
	"time"

	"holdfast/internal/config"
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
	silent      silent
	failed      chan error                 // from a listener that broke
	tasks       chan func(context.Context) // for the main loop, from the API
	ready       bool                       // and the service manager knows it
}

// serve runs the daemon until a signal ends it. The order is that of every
// start, after a clean stop or after a crash: lock, read what is on disk,
// listen and answer, find out what runs, say ready.
func serve(flags *config.Flags, cfg *config.Config) error {
	if os.Geteuid() != 0 {
		return errors.New("holdfastd needs to be started with root privileges")
	}
	d := &daemon{flags: flags, cfg: cfg, level: new(slog.LevelVar), notify: handoff.NewNotifier(), failed: make(chan error, 1), tasks: make(chan func(context.Context))}
	d.log = newLogger(os.Stderr, cfg, d.level)
	slog.SetDefault(d.log)
	settle(cfg, d.log)
	signals := catchSignals()
	started := time.Now()

	lock, err := handoff.Acquire(context.Background(), cfg.DataRoot, cfg.ExecRoot)
	if err != nil {
		return err
	}
	defer lock.Release()
	pidfile, err := handoff.WritePidfile(cfg.PidfilePath())
	if err != nil {
		return err
	}
	defer pidfile.Remove()
	d.log.Info("Starting up", "version", version.Version, "commit", version.Commit, "pid", os.Getpid(), "data-root", cfg.DataRoot, "exec-root", cfg.ExecRoot, "live-restore", cfg.LiveRestore)
	for _, w := range cfg.Warnings() {
		d.log.Warn(w)
	}

	shim, err := findShim(cfg)
	if err != nil {
		return err
	}
	if d.service, err = compose(context.Background(), cfg, shim, d, d.log); err != nil {
		return err
	}
	defer func() {
		if err := d.service.Close(); err != nil {
			d.log.Warn("could not close cleanly", "error", err)
		}
	}()
	if err := d.listen(); err != nil {
		return err
	}
	defer d.listeners.Remove()
	defer d.hangUp()
	return d.loop(signals, started)
}

// listen opens the sockets and starts to answer on them.
func (d *daemon) listen() error {
	var conf *tls.Config
	if d.cfg.UseTLS() {
		var err error
		if conf, err = handoff.ServerTLS(tlsFiles(d.cfg)); err != nil {
			return err
		}
	}
	inherited := handoff.FromServiceManager()
	var err error
	d.listeners, err = handoff.Listen(context.Background(), handoff.ListenOptions{
		Addresses: d.cfg.Addresses(), Group: d.cfg.Group, GroupRequired: d.cfg.Given("group"),
		TLS: conf, Inherited: inherited, Log: d.log,
	})
	if err != nil {
		return err
	}
	if err := d.sayRoots(); err != nil {
		d.log.Warn("commands will not find the containers while no daemon lives", "error", err)
	}
	if err := d.listeners.Store(d.notify, inherited); err != nil {
		d.log.Warn("the service manager keeps no copies of the sockets: requests during a restart will be refused", "error", err)
	}

	d.requests, d.endRequests = context.WithCancel(context.Background())
	d.server = &http.Server{
		Handler: d.service.Handler(),
		// A client may think between its head's first and last byte, but not
		// for ever; bodies and answers are streams without a limit.
		ReadHeaderTimeout: 5 * time.Minute,
		IdleTimeout:       10 * time.Minute,
		BaseContext:       func(net.Listener) context.Context { return d.requests },
		ErrorLog:          slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
		Protocols:         new(http.Protocols),
		ConnState:         d.silent.track,
	}
	d.server.Protocols.SetHTTP1(true)
	for _, l := range d.listeners.All() {
		d.log.Info("API listen on " + l.Shown())
		go func() {
			if err := d.server.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
				select {
				case d.failed <- fmt.Errorf("serve the API on %s: %w", l.Address, err):
				default: // one is enough to end the daemon
				}
			}
		}()
	}
	return nil
}

// loop lives the daemon's life between the start and the end.
func (d *daemon) loop(signals <-chan os.Signal, started time.Time) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	restored := make(chan error, 1)
	go func() { restored <- d.service.Restore(ctx) }()
	for {
		select {
		case err := <-restored:
			if err != nil {
				return fmt.Errorf("restore what was there: %w", err)
			}
			d.log.Info("Daemon has completed initialization", "took", time.Since(started).Round(time.Microsecond).String())
			d.ready = true
			d.tell(d.notify.Ready("ready"))
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
	d.log.Info("Daemon shutdown complete")
	return nil
}

// tell logs what the service manager could not be told.
func (d *daemon) tell(err error) {
	if err != nil {
		d.log.Warn(err.Error())
	}
}
