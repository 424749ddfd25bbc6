package config

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestDiffNamesChangedKeysWithTheirClass(t *testing.T) {
	old := mustLoad(t, `{"debug": false, "bip": "10.0.0.1/24", "labels": ["a=1"], "proxies": {"http-proxy": "http://u:p@h"}}`)
	new := mustLoad(t, `{"debug": true, "bip": "10.0.1.1/24", "labels": ["a=1"], "data-root": "/d", "containerd": "x", "proxies": {"http-proxy": "http://u:q@h"}}`)
	want := []Change{
		{"bip", NewObjects, "10.0.0.1/24", "10.0.1.1/24"},
		{"containerd", Restart, "", "x"},
		{"data-root", Restart, "/var/lib/holdfast", "/d"},
		{"debug", Live, "false", "true"},
		{"http-proxy", Restart, "http://xxxxx:xxxxx@h", "http://xxxxx:xxxxx@h"},
	}
	if got := Diff(old, new); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
	if got := Diff(old, old); len(got) > 0 {
		t.Errorf("got %v", got)
	}
}

func TestLiveKeysAreThoseThatAReloadTakes(t *testing.T) {
	want := "allow-nondistributable-artifacts authorization-plugins debug default-runtime insecure-registries labels live-restore log-level max-concurrent-downloads max-concurrent-uploads max-download-attempts registry-mirrors runtimes shutdown-timeout"
	live := map[string]bool{}
	for _, o := range Options() {
		if o.Class == Live {
			live[o.name()] = true
		}
	}
	if got := strings.Join(sorted(live), " "); got != want {
		t.Errorf("got %s", got)
	}
}

func TestReloadTakesLiveKeysAndLeavesTheOthers(t *testing.T) {
	old := mustLoad(t, `{"labels": ["a=1"], "mtu": 1400}`)
	new := mustLoad(t, `{"live-restore": true, "debug": true, "runtimes": {"crun": {"path": "/c"}}, "default-runtime": "crun", "mtu": 1300, "shutdown-timeout": 40}`)
	merged, left := TakeLive(old, new)
	if !merged.LiveRestore || !merged.Debug || merged.DefaultRuntime != "crun" || merged.Runtimes["crun"].Path != "/c" || len(merged.Labels) > 0 || merged.ShutdownTimeout != 40 {
		t.Errorf("%+v", merged)
	}
	if merged.MTU != 1400 || len(left) != 1 || left[0].Key != "mtu" || left[0].Class != NewObjects {
		t.Errorf("mtu %d, left %v", merged.MTU, left)
	}
	if old.LiveRestore || len(old.Labels) != 1 || old.Given("live-restore") || !merged.Given("live-restore") {
		t.Error("the old configuration was changed")
	}
	if back, left := TakeLive(merged, mustLoad(t, "-")); back.LiveRestore || len(left) != 1 {
		t.Errorf("a key taken out of the file did not go back: %v %v", back.LiveRestore, left)
	}
}

// recorder is a part that writes down what is asked of it.
func recorder(log *[]string, name string, fail error) Reloader {
	return NewReloader(name, func(context.Context, *Config, *Config) (func(), func(), error) {
		*log = append(*log, "prepare "+name)
		if fail != nil {
			return nil, nil, fail
		}
		return func() { *log = append(*log, "commit "+name) }, func() { *log = append(*log, "rollback "+name) }, nil
	})
}

func TestReloadCommitsOnlyWhenAllHavePrepared(t *testing.T) {
	var log []string
	nothing := NewReloader("nothing", func(context.Context, *Config, *Config) (func(), func(), error) { return nil, nil, nil })
	err := Reload(context.Background(), []Reloader{recorder(&log, "a", nil), nothing, recorder(&log, "b", nil)}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(log, ", "); got != "prepare a, prepare b, commit a, commit b" {
		t.Error(got)
	}
}

func TestFailedReloadRollsBackInReverseOrder(t *testing.T) {
	var log []string
	boom := errors.New("boom")
	nothing := NewReloader("nothing", func(context.Context, *Config, *Config) (func(), func(), error) { return nil, nil, nil })
	err := Reload(context.Background(), []Reloader{recorder(&log, "a", nil), nothing, recorder(&log, "b", nil), recorder(&log, "c", boom), recorder(&log, "d", nil)}, nil, nil)
	if !errors.Is(err, boom) || !strings.Contains(err.Error(), "reload of c") {
		t.Error(err)
	}
	if got := strings.Join(log, ", "); got != "prepare a, prepare b, prepare c, rollback b, rollback a" {
		t.Error(got)
	}
}
