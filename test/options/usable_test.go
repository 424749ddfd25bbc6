// SPDX-License-Identifier: Apache-2.0

package options

import (
	"encoding/json"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// TestValueThatCantBeUsedIsRefusedBySighupAndAtStart: if --validate refuses a
// file, a reload and a start refuse it as well, and a dry run names the key.
func TestValueThatCantBeUsedIsRefusedBySighupAndAtStart(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{Config: map[string]any{"debug": false, "max-concurrent-downloads": 3}})
	d.WriteConfig(map[string]any{"debug": true, "max-concurrent-downloads": 5, "log-driver": "syslog"})
	r := d.TryHoldfast("daemon", "reload", "--dry-run", "--format", "json")
	var plan struct {
		Error   string
		Changes []struct {
			Key, Reload, Restart, Why string
			Old, New                  any
		}
	}
	if err := json.Unmarshal([]byte(r.Stdout), &plan); err != nil || r.Code != 1 || !strings.Contains(plan.Error, "log-driver: ") {
		t.Fatalf("%v: %+v", err, r)
	}
	for _, c := range plan.Changes {
		switch c.Key {
		case "debug":
			if c.Old != false || c.New != true || c.Reload != "live" {
				t.Errorf("%+v", c)
			}
		case "max-concurrent-downloads":
			if c.Old != 3.0 || c.New != 5.0 {
				t.Errorf("%+v", c)
			}
		case "log-driver":
			if c.Reload != "error" || c.Restart != "error" || !strings.Contains(c.Why, "use json-file, local or none") {
				t.Errorf("%+v", c)
			}
		}
	}
	if r := d.TryHoldfast("daemon", "reload"); r.Code != 1 || !strings.Contains(r.Stderr, "nothing was changed") || !strings.Contains(r.Stderr, "log-driver: ") {
		t.Errorf("%+v", r)
	}
	d.Hup()
	if got := d.Docker("info", "-f", "{{.Debug}}"); got != "false" {
		t.Errorf("a part of the refused file was applied: debug is %s", got)
	}
	d.Term()
	if err := d.TryStart(); err == nil || !strings.Contains(err.Error(), "log-driver: ") || !strings.Contains(err.Error(), "use json-file") {
		t.Errorf("the start says %v", err)
	}
	d.WriteConfig(nil)
	d.Start()
}
