// Package engine is what the daemon does: it keeps one actor per container,
// brings what users ask and what shims tell before the lifecycle of package
// container, and carries out what that says through the small interfaces in
// ports.go. It owns no file format, no kernel object and no HTTP; and nothing
// that a running container needs passes through it.
package engine

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/internal/config"
	"holdfast/internal/engine/oci"
	"holdfast/internal/event"
)

// Config is the daemon's configuration with what was found for it on the host.
// It never changes; a reload puts another in its place. Values hold for what
// is created after, except LiveRestore, Labels and ShutdownTimeout.
type Config struct {
	*config.Config
	ShimPath string       // of the shim's binary
	Defaults oci.Defaults // of containers
}

// runtimes are the OCI runtimes by name, the one that is always there too.
func (c *Config) runtimes() map[string]config.Runtime {
	all := map[string]config.Runtime{config.StockRuntime: {Path: config.StockRuntime}}
	maps.Copy(all, c.Runtimes)
	return all
}

// Deps are the parts that the engine is made of.
type Deps struct {
	Store    Store
	Shims    Shims
	Images   Images
	Networks Networks
	Volumes  Volumes
	Events   Events
	Lives    Lives
	Host     oci.Host
	Log      *slog.Logger
	Release  string
	ID       string // of this daemon's data root
	// HandedOver: a daemon that lived until now gave everything to this one, so
	// that what runs is to be kept, whatever live restore says.
	HandedOver bool
	// Keeper may be nil.
	Keeper Keeper
}

// Engine is the daemon's core. Its exported methods are the backends that the
// API's rooms ask for; each takes a container by name, ID or ID prefix.
type Engine struct {
	store    Store
	shims    Shims
	images   Images
	networks Networks
	volumes  Volumes
	events   Events
	lives    Lives
	keeper   Keeper // may be nil
	host     oci.Host
	log      *slog.Logger
	release  string
	id       string
	started  time.Time

	config atomic.Pointer[Config]
	index  *index
	stats  statsHub
	names  nameFiles
	// listeners counts the clients of Events.
	listeners atomic.Int64

	// observes: this is an Observer's, or was retired: it changes nothing by
	// itself. It is never taken back.
	observes atomic.Bool
	links    atomic.Bool // some container has links
	// retired: it observes because a successor does the rest.
	retired atomic.Bool
	// handedOver: see Deps.
	handedOver bool
	// unread are the containers whose records can't be used; set by Load alone.
	unread []string
	// restored is closed when every container was looked at; what would change
	// something waits for it, what reads does not.
	restored chan struct{}
	// closing is closed when the daemon ends.
	closing   chan struct{}
	closeOnce sync.Once
}

// New makes an engine that knows nothing yet; Load and Restore follow.
func New(d Deps, cfg *Config) *Engine {
	e := &Engine{
		store: d.Store, shims: d.Shims, images: d.Images, networks: d.Networks,
		volumes: d.Volumes, events: d.Events, lives: d.Lives, keeper: d.Keeper, host: d.Host, log: d.Log,
		release: d.Release, id: d.ID, handedOver: d.HandedOver, started: time.Now(),
		index:    newIndex(),
		restored: make(chan struct{}),
		closing:  make(chan struct{}),
	}
	e.config.Store(cfg)
	return e
}

// SetConfig puts a new configuration in place, and journals it. Running
// containers keep theirs.
func (e *Engine) SetConfig(cfg *Config) {
	e.config.Store(cfg)
	name, _ := os.Hostname()
	list := func(v any) string {
		b, _ := json.Marshal(v) // lists and maps of strings
		if string(b) == "null" {
			return "[]"
		}
		return string(b)
	}
	e.emit("daemon", "reload", e.id, map[string]string{
		"name": name, "live-restore": strconv.FormatBool(cfg.LiveRestore), "debug": strconv.FormatBool(cfg.Debug),
		"labels": list(cfg.Labels), "registry-mirrors": list(cfg.RegistryMirrors), "insecure-registries": list(cfg.InsecureRegistries),
		"shutdown-timeout": strconv.Itoa(cfg.ShutdownTimeout), "max-concurrent-downloads": strconv.Itoa(cfg.MaxConcurrentDownloads),
		"max-download-attempts": strconv.Itoa(cfg.MaxDownloadAttempts), "default-runtime": cfg.DefaultRuntime, "runtimes": list(cfg.runtimes()),
	}, time.Now())
}

// ready waits until the restore is done.
func (e *Engine) ready(ctx context.Context) error {
	select {
	case <-e.restored:
		return nil
	default:
	}
	select {
	case <-e.restored:
		return nil
	case <-e.closing:
		return unavailable("the daemon is shutting down")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// find finds a container for an effect, once all are restored.
func (e *Engine) find(ctx context.Context, ref string) (*actor, error) {
	if err := e.ready(ctx); err != nil {
		return nil, err
	}
	return e.index.find(ref)
}

// record journals what a shim saw. An entry that is there already, because an
// earlier daemon took it, is left as it is.
func (e *Engine) record(a *actor, entry shimEntry, life uint64) {
	e.append(a.message(entry, life), entry.Time)
}

// message is a shim's entry as an event of the API.
func (a *actor) message(entry shimEntry, life uint64) event.Message {
	at := a.attributes()
	for k, v := range entry.Attributes {
		at[k] = v
	}
	action := entry.Action
	if h := entry.Attributes["health"]; h != "" {
		action += ": " + h
		delete(at, "health")
	}
	return event.Message{
		Type: "container", Action: action, Scope: "local",
		Actor: event.Actor{ID: a.id, Attributes: at},
		Time:  entry.Time.Unix(), TimeNano: entry.Time.UnixNano(),
		Source: entrySource(a.id, life, entry.Seq),
	}
}

// emit journals what the daemon did.
func (e *Engine) emit(typ, action, id string, attributes map[string]string, at time.Time) {
	e.append(event.Message{Type: typ, Action: action, Actor: event.Actor{ID: id, Attributes: attributes}}, at)
}

func (e *Engine) append(m event.Message, at time.Time) {
	m.Scope = "local"
	m.Time, m.TimeNano = at.Unix(), at.UnixNano()
	if _, err := e.events.Append(m); err != nil {
		e.log.Error("event not journalled", "type", m.Type, "action", m.Action, "id", m.Actor.ID, "error", err)
	}
}

// Experimental reports whether experimental features are on.
func (e *Engine) Experimental() bool { return e.config.Load().Experimental }
