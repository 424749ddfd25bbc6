package config

import (
	"context"
	"fmt"
	"reflect"
	"sort"
)

// Effect is what becomes of a changed option.
type Effect string

// Effects.
const (
	// EffectLive: it holds from then on, for all that it concerns.
	EffectLive Effect = "live"
	// EffectNewObjects: it holds for what is created from then on. What is
	// there keeps what it has.
	EffectNewObjects Effect = "new objects only"
	// EffectRefused: it is not taken, and nothing is changed by it.
	EffectRefused Effect = "refused"
	// EffectNone: it is taken with a warning and changes nothing.
	EffectNone Effect = "nothing"
)

// reloadable reports whether SIGHUP takes an option of the class.
func (c Class) reloadable() bool { return c == Live || c == NewObjects }

// OnReload is what SIGHUP does with a change of the option.
func (o *Option) OnReload() Effect {
	switch {
	case o.Support == Refused:
		return EffectRefused
	case o.Support == Ignored:
		return EffectNone
	case o.Class == Live:
		return EffectLive
	case o.Class == NewObjects:
		return EffectNewObjects
	}
	return EffectRefused
}

// OnRestart is what the next start of the daemon does with a change of the
// option. For the class Root it is what happens unless a container stands
// against it.
func (o *Option) OnRestart() Effect {
	switch {
	case o.Support == Refused:
		return EffectRefused
	case o.Support == Ignored:
		return EffectNone
	case o.Class == NewObjects || o.Class == NewAtStart:
		return EffectNewObjects
	}
	return EffectLive
}

// atStart is why a reload leaves an option that only a start takes.
const atStart = "taken when the daemon starts"

// Why says why a change is refused, or what running containers have of it;
// empty where the effect says it all.
func (o *Option) Why() string {
	switch {
	case o.Support != Honoured:
		return o.Reason
	case o.Class.reloadable():
		return o.Note
	case o.Note != "":
		return atStart + "; " + o.Note
	}
	return atStart
}

// Planned is a changed option with what becomes of it.
type Planned struct {
	Key string `json:"key"`
	Old string `json:"old"` // as a flag would show it, without credentials
	New string `json:"new"`
	// Reload and Restart are what SIGHUP and what a restart do with it.
	Reload  Effect `json:"reload"`
	Restart Effect `json:"restart"`
	Why     string `json:"why,omitempty"`
}

// Plan says what would become of each changed option. kept is how many
// containers would be left behind by another data root.
func Plan(old, new *Config, kept int) []Planned {
	plan := []Planned{}
	for _, c := range Diff(old, new) {
		o := byName(c.Key)
		p := Planned{Key: c.Key, Old: c.Old, New: c.New, Reload: o.OnReload(), Restart: o.OnRestart(), Why: o.Why()}
		if o.Support == Refused && new.refused[c.Key] == "" {
			// Back to the default, or to what is so anyway.
			p.Reload, p.Restart, p.Why = EffectNone, EffectNone, ""
		}
		if o.Class == Root && kept > 0 && old.ExecRoot == new.ExecRoot {
			p.Restart = EffectRefused
			p.Why = fmt.Sprintf("%s of the old data root run: stop them first, or give the new data root an exec-root and a bridge of its own", containers(kept))
		}
		plan = append(plan, p)
	}
	return plan
}

func containers(n int) string {
	if n == 1 {
		return "1 container"
	}
	return fmt.Sprintf("%d containers", n)
}

func byName(name string) *Option {
	for i := range table {
		if table[i].name() == name {
			return &table[i]
		}
	}
	return nil
}

// Change is an option whose value differs between two configurations.
type Change struct {
	Key   string
	Class Class
	Old   string // as a flag would show it, without credentials
	New   string
}

// Diff lists what changed, by key.
func Diff(old, new *Config) []Change {
	var out []Change
	for i := range table {
		o := &table[i]
		a, b := old.pointer(o), new.pointer(o)
		if same(a, b) {
			continue
		}
		from, to := text(a), text(b)
		if o.Parent == "proxies" {
			from, to = MaskCredentials(from), MaskCredentials(to)
		}
		out = append(out, Change{o.name(), o.Class, from, to})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Key < out[j].Key })
	return out
}

// same compares two values; an empty list or map is as good as none.
func same(a, b any) bool {
	x, y := reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem()
	return empty(x) && empty(y) || reflect.DeepEqual(x.Interface(), y.Interface())
}

// TakeLive is old with those options of new that a reload takes: what a running
// daemon goes on with after it. left are the changed keys that wait for a
// restart.
func TakeLive(old, new *Config) (merged *Config, left []Change) {
	m := *old
	m.other = map[string]any{}
	for k, v := range old.other {
		m.other[k] = v
	}
	m.given = map[string]bool{}
	for k, v := range old.given {
		m.given[k] = v
	}
	m.warnings = new.warnings
	for i := range table {
		o := &table[i]
		if !o.Class.reloadable() {
			continue
		}
		if o.field == nil {
			m.other[o.name()] = new.pointer(o)
		} else {
			reflect.ValueOf(o.field(&m)).Elem().Set(reflect.ValueOf(o.field(new)).Elem())
		}
		m.given[o.name()] = new.given[o.name()]
	}
	for _, c := range Diff(old, new) {
		if !c.Class.reloadable() {
			left = append(left, c)
		}
	}
	return &m, left
}

// Reloader is a part of the daemon that has to be told of a new configuration.
type Reloader interface {
	Name() string
	// Prepare does all that can fail. commit then makes the change and can't
	// fail; rollback undoes what Prepare did. Exactly one of the two is
	// called if err is nil, none if it isn't. Either may be nil.
	Prepare(ctx context.Context, old, new *Config) (commit, rollback func(), err error)
}

// NewReloader is a Reloader made of a function.
func NewReloader(name string, prepare func(ctx context.Context, old, new *Config) (commit, rollback func(), err error)) Reloader {
	return reloader{name, prepare}
}

type reloader struct {
	name    string
	prepare func(ctx context.Context, old, new *Config) (func(), func(), error)
}

func (r reloader) Name() string { return r.name }

func (r reloader) Prepare(ctx context.Context, old, new *Config) (func(), func(), error) {
	return r.prepare(ctx, old, new)
}

// Reload carries a change through: every part prepares, in order, and only
// when all have done so every part commits, in order. On the first error those
// that had prepared roll back, the last one first, and nothing has changed.
func Reload(ctx context.Context, list []Reloader, old, new *Config) error {
	var commits, rollbacks []func()
	for _, r := range list {
		commit, rollback, err := r.Prepare(ctx, old, new)
		if err != nil {
			for i := len(rollbacks) - 1; i >= 0; i-- {
				rollbacks[i]()
			}
			return fmt.Errorf("reload of %s: %w", r.Name(), err)
		}
		if commit != nil {
			commits = append(commits, commit)
		}
		if rollback != nil {
			rollbacks = append(rollbacks, rollback)
		}
	}
	for _, commit := range commits {
		commit()
	}
	return nil
}
