// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A unit whose stop kills the whole cgroup, or that does not delegate its
// subtree, would take the containers down with the daemon.
func TestUnitsLeaveTheContainersAlone(t *testing.T) {
	unit := readUnit(t, "holdfast.service")
	for key, want := range map[string]string{
		"Type": "notify-reload", "KillMode": "process", "Delegate": "yes", "ExecReload": "kill -HUP $MAINPID",
		"Requires": "holdfast.socket", "TimeoutStopSec": "infinity", "FileDescriptorStorePreserve": "yes", "Restart": "always",
		"StartLimitIntervalSec": "0", // a limit would leave the API down, and close the descriptor store
	} {
		if got := unit[key]; got != want {
			t.Errorf("%s=%s, want %s", key, got, want)
		}
	}
	for key, why := range map[string]string{
		"PIDFile": "READY=1 tells the process", "PrivateMounts": "mounts of containers would not be the host's",
		"PrivateTmp": "the same", "ProtectSystem": "the same", "RuntimeDirectory": "systemd would remove the shims' folders at a stop",
		"StartLimitBurst": "there is no limit", "BindsTo": "the daemon would stop with the other unit",
	} {
		if got, there := unit[key]; there {
			t.Errorf("%s=%s: %s", key, got, why)
		}
	}
	if unit["FileDescriptorStoreMax"] == "" {
		t.Error("no descriptor store: unread output and descriptors that only the daemon holds would be lost with it")
	}
	if every, err := time.ParseDuration(strings.Replace(unit["WatchdogSec"], "min", "m", 1)); err != nil || every < time.Minute {
		t.Errorf("WatchdogSec=%s: a host under load would kill the daemon", unit["WatchdogSec"])
	}
	if unit["RestartSteps"] == "" || unit["RestartMaxDelaySec"] == "" {
		t.Error("a daemon that exits at once would keep the host busy")
	}
	socket := readUnit(t, "holdfast.socket")
	if got := socket["ListenStream"]; got != "/run/holdfast/holdfast.sock" {
		t.Errorf("ListenStream=%s", got)
	}
	if got := socket["RemoveOnStop"]; got != "" {
		t.Errorf("RemoveOnStop=%s: containers that mount the socket would lose it", got)
	}
}

// readUnit returns the last value of each key.
func readUnit(t *testing.T, name string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for line := range strings.Lines(read(t, filepath.Join("contrib", "systemd", name))) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			out[key] = value
		}
	}
	return out
}
