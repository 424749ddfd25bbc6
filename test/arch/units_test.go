package arch

import (
	"path/filepath"
	"strings"
	"testing"
)

// A unit that ends the whole cgroup, or that does not let go of the one below
// it, takes the containers along with the daemon.
func TestUnitsLeaveTheContainersAlone(t *testing.T) {
	unit := readUnit(t, "holdfast.service")
	for key, want := range map[string]string{
		"Type": "notify-reload", "KillMode": "process", "Delegate": "yes", "ExecReload": "kill -HUP $MAINPID",
		"Requires": "holdfast.socket", "TimeoutStopSec": "infinity",
	} {
		if got := unit[key]; got != want {
			t.Errorf("%s=%s, want %s", key, got, want)
		}
	}
	for key, why := range map[string]string{
		"PIDFile": "READY=1 tells the process", "PrivateMounts": "mounts of containers would not be the host's",
		"PrivateTmp": "the same", "ProtectSystem": "the same", "RuntimeDirectory": "systemd would remove the shims' folders at a stop",
		"WatchdogSec": "a host under load would kill the daemon", "BindsTo": "the daemon would stop with the other unit",
	} {
		if got, there := unit[key]; there {
			t.Errorf("%s=%s: %s", key, got, why)
		}
	}
	if unit["FileDescriptorStoreMax"] == "" {
		t.Error("no descriptor store: what waits and what only the daemon holds would be lost with it")
	}
	socket := readUnit(t, "holdfast.socket")
	if got := socket["ListenStream"]; got != "/run/holdfast/holdfast.sock" {
		t.Errorf("ListenStream=%s", got)
	}
	if got := socket["RemoveOnStop"]; got != "" {
		t.Errorf("RemoveOnStop=%s: containers that mount the socket would lose it", got)
	}
}

// readUnit gives the last value of each key.
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
