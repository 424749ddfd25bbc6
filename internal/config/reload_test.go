// SPDX-License-Identifier: Apache-2.0

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
		{"bip", NewAtStart, "10.0.0.1/24", "10.0.1.1/24"},
		{"containerd", Restart, "", "x"},
		{"data-root", Root, "/var/lib/holdfast", "/d"},
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
	want := "allow-nondistributable-artifacts api-allowed-hosts api-allowed-origins authorization-plugins debug insecure-registries labels live-restore log-level max-concurrent-downloads max-concurrent-uploads max-download-attempts registry-mirrors registry-token-hosts runtimes shutdown-timeout"
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
	new := mustLoad(t, `{"live-restore": true, "debug": true, "runtimes": {"crun": {"path": "/c"}}, "default-runtime": "crun", "mtu": 1300, "shutdown-timeout": 40, "builder": {"gc": {"enabled": false}}}`)
	merged, left := TakeLive(old, new)
	if !merged.LiveRestore || !merged.Debug || merged.DefaultRuntime != "crun" || merged.Runtimes["crun"].Path != "/c" || len(merged.Labels) > 0 || merged.ShutdownTimeout != 40 || !merged.Builder.GCOff {
		t.Errorf("%+v", merged)
	}
	if merged.MTU != 1400 || len(left) != 1 || left[0].Key != "mtu" || left[0].Class != NewAtStart {
		t.Errorf("mtu %d, left %v", merged.MTU, left)
	}
	if old.LiveRestore || len(old.Labels) != 1 || old.Given("live-restore") || !merged.Given("live-restore") {
		t.Error("the old configuration was changed")
	}
	if back, left := TakeLive(merged, mustLoad(t, "-")); back.LiveRestore || len(left) != 1 {
		t.Errorf("a key taken out of the file did not go back: %v %v", back.LiveRestore, left)
	}
}

func TestPlanSaysWhatBecomesOfEachChange(t *testing.T) {
	old := mustLoad(t, `{"bip": "10.0.0.1/24"}`)
	flags, err := ParseFlags(nil)
	if err != nil {
		t.Fatal(err)
	}
	new, err := Read(flags, func(string) ([]byte, error) {
		return []byte(`{"bip": "10.0.1.1/24", "debug": true, "dns": ["1.1.1.1"], "data-root": "/d", "userns-remap": "default", "containerd": "x", "hosts": ["unix:///run/x.sock"]}`), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][2]Effect{
		"bip":          {EffectRestart, EffectNewObjects},
		"containerd":   {EffectNone, EffectNone},
		"data-root":    {EffectRestart, EffectError},
		"debug":        {EffectLive, EffectLive},
		"dns":          {EffectNewObjects, EffectNewObjects},
		"hosts":        {EffectRestart, EffectLive},
		"userns-remap": {EffectError, EffectError},
	}
	plan := Plan(old, new, 2, nil)
	if len(plan) != len(want) {
		t.Errorf("got %v", plan)
	}
	for _, p := range plan {
		if got := [2]Effect{p.Reload, p.Restart}; got != want[p.Key] {
			t.Errorf("%s: got %q, want %q", p.Key, got, want[p.Key])
		}
		if (p.Reload == EffectRestart || p.Reload == EffectError || p.Reload == EffectNone) && p.Why == "" {
			t.Errorf("%s is not taken, and no word why", p.Key)
		}
		if p.Key == "data-root" && !strings.Contains(p.Why, "2 containers of the old data root run") {
			t.Error(p.Why)
		}
	}
	for _, p := range Plan(old, new, 0, nil) {
		if p.Key == "data-root" && p.Restart != EffectLive {
			t.Errorf("without containers: %+v", p)
		}
	}
	// Removing a refused value is not refused.
	for _, p := range Plan(new, old, 0, nil) {
		if p.Key == "userns-remap" && p.Reload != EffectNone {
			t.Errorf("%+v", p)
		}
	}
}

// recorder returns a part that records its calls.
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
