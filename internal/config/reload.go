// SPDX-License-Identifier: Apache-2.0

package config

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sort"
)

// Effect is what happens with a changed option.
type Effect string

// The values of Effect.
const (
	// EffectLive: it takes effect at once for everything that it concerns.
	EffectLive Effect = "live"
	// EffectNewObjects: it takes effect for objects that are created from then on.
	// Existing ones keep the old value.
	EffectNewObjects Effect = "new objects"
	// EffectRestart: it only takes effect at a start. A reload applies the rest of
	// the file.
	EffectRestart Effect = "needs a restart"
	// EffectError: it can't be used. Nothing of the file is applied.
	EffectError Effect = "error"
	// EffectNone: it is accepted with a warning and has no effect.
	EffectNone Effect = "nothing"
)

// reloadable reports whether SIGHUP applies an option of the class.
func (c Class) reloadable() bool { return c == Live || c == NewObjects }

// OnReload returns what SIGHUP does with a change of the option.
func (o *Option) OnReload() Effect {
	switch {
	case o.Support == Refused:
		return EffectError
	case o.Support == Ignored:
		return EffectNone
	case o.Class == Live:
		return EffectLive
	case o.Class == NewObjects:
		return EffectNewObjects
	}
	return EffectRestart
}

// OnRestart returns what the next start of the daemon does with a change of the
// option. For the class Root a container may prevent it.
func (o *Option) OnRestart() Effect {
	switch {
	case o.Support == Refused:
		return EffectError
	case o.Support == Ignored:
		return EffectNone
	case o.Class == NewObjects || o.Class == NewAtStart:
		return EffectNewObjects
	}
	return EffectLive
}

// atStart is the reason why a reload does not apply an option of the other
// classes.
const atStart = "applied when the daemon starts"

// Why returns why a change is refused, or how it affects running containers. It
// is empty if the effect says it all.
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

// Planned is a changed option with its effect.
type Planned struct {
	Key string `json:"key"`
	// Old and New are the values in the form of daemon.json, without credentials.
	Old any `json:"old"`
	New any `json:"new"`
	// Reload and Restart are the effects of SIGHUP and of a restart.
	Reload  Effect `json:"reload"`
	Restart Effect `json:"restart"`
	Why     string `json:"why,omitempty"`
}

// Plan returns the effect of each changed option. kept is the number of
// containers that a change of the data root would leave behind. unusable is the
// reason if new can't be used on this host, or nil; a KeyError names the key.
func Plan(old, new *Config, kept int, unusable error) []Planned {
	plan := []Planned{}
	for _, c := range Diff(old, new) {
		o := byName(c.Key)
		p := Planned{Key: c.Key, Old: value(o, old.pointer(o)), New: value(o, new.pointer(o)), Reload: o.OnReload(), Restart: o.OnRestart(), Why: o.Why()}
		if o.Support == Refused && new.refused[c.Key] == "" {
			// The change goes back to the default, or to what Holdfast does anyway.
			p.Reload, p.Restart, p.Why = EffectNone, EffectNone, ""
		}
		if o.Class == Root && kept > 0 && old.ExecRoot == new.ExecRoot {
			p.Restart = EffectError
			p.Why = fmt.Sprintf("%s of the old data root run: stop them first, or give the new data root an exec-root and a bridge of its own", containers(kept))
		}
		if bad := new.refused[c.Key]; bad != "" {
			p.Reload, p.Restart, p.Why = EffectError, EffectError, bad
		}
		var key *KeyError
		if errors.As(unusable, &key) && key.Key == c.Key {
			p.Reload, p.Restart, p.Why = EffectError, EffectError, key.Err.Error()
		}
		plan = append(plan, p)
	}
	return plan
}

// KeyError is the reason why the value of a key can't be used.
type KeyError struct {
	Key string
	Err error // what is wrong, and what to do
}

func (e *KeyError) Error() string { return e.Key + ": " + e.Err.Error() }
func (e *KeyError) Unwrap() error { return e.Err }

// value returns an option's value in the form of daemon.json, without
// credentials. A nil list or map becomes an empty one.
func value(o *Option, p any) any {
	v := reflect.ValueOf(p).Elem()
	switch {
	case o.Parent == "proxies":
		return MaskCredentials(v.String())
	case o.Kind == Object && v.Kind() == reflect.String:
		if text := v.String(); json.Valid([]byte(text)) {
			return json.RawMessage(text)
		}
	case v.Kind() == reflect.Slice && v.IsNil():
		return []any{}
	case v.Kind() == reflect.Map && v.IsNil():
		return map[string]any{}
	}
	return v.Interface()
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
	Old   string // as a flag's value, without credentials
	New   string
}

// Diff returns the changed options, sorted by key.
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

// same compares two values. An empty list or map equals nil.
func same(a, b any) bool {
	x, y := reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem()
	return empty(x) && empty(y) || reflect.DeepEqual(x.Interface(), y.Interface())
}

// TakeLive returns old with those options of new that a reload applies, which is
// the running daemon's new configuration. left are the changed keys that need a
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
	m.Builder = new.Builder // it is parsed from the key builder
	for _, c := range Diff(old, new) {
		if !c.Class.reloadable() {
			left = append(left, c)
		}
	}
	return &m, left
}

// Reloader is a part of the daemon that applies a new configuration.
type Reloader interface {
	Name() string
	// Prepare does everything that can fail. commit then makes the change and can't
	// fail; rollback undoes what Prepare did. If err is nil exactly one of the two
	// is called, otherwise none. Either may be nil.
	Prepare(ctx context.Context, old, new *Config) (commit, rollback func(), err error)
}

// NewReloader returns a Reloader that calls a function.
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

// Reload applies a change: every part prepares, in order, and only if all succeed
// every part commits, in order. On the first error the parts that had prepared
// roll back, in reverse order, and nothing has changed.
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
