package config

import (
	"context"
	"fmt"
	"reflect"
	"sort"
)

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

// TakeLive is old with the live options of new: what a running daemon goes on
// with after a reload. left are the changed keys that wait for a restart.
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
		if o.Class != Live {
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
		if c.Class != Live {
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
