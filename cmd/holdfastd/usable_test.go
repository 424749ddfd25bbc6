// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/config"
)

// unusable are keys whose values are valid, but name something that does not
// exist or can't be used. want is the text that the message must contain
// besides the key. dir has the files cut.json and plain.
func unusable(dir string) []struct {
	key  string
	set  map[string]any
	want string
} {
	cut, plain := filepath.Join(dir, "cut.json"), filepath.Join(dir, "plain")
	return []struct {
		key  string
		set  map[string]any
		want string
	}{
		{"log-driver", map[string]any{"log-driver": "syslog"}, "use json-file, local or none"},
		{"log-driver", map[string]any{"log-driver": "nonsense"}, "error looking up logging plugin nonsense"},
		{"log-opts", map[string]any{"log-opts": map[string]any{"colour": "red"}}, "unknown log opt 'colour' for json-file log driver"},
		{"log-opts", map[string]any{"log-opts": map[string]any{"max-size": "much"}}, "max-size"},
		{"storage-driver", map[string]any{"storage-driver": "btrfs"}, "btrfs"},
		{"seccomp-profile", map[string]any{"seccomp-profile": dir + "/none"}, "name a file with a profile in JSON"},
		{"seccomp-profile", map[string]any{"seccomp-profile": cut}, "is not a seccomp profile"},
		{"group", map[string]any{"group": "nobody-is-in-here"}, "groupadd nobody-is-in-here"},
		{"tlscert", map[string]any{"tls": true, "tlscert": dir + "/none", "tlskey": plain, "tlsverify": false}, "make one, or name them"},
		{"tlskey", map[string]any{"tls": true, "tlscert": plain, "tlskey": dir + "/none", "tlsverify": false}, "make one, or name them"},
		{"runtimes", map[string]any{"runtimes": map[string]any{"other": map[string]any{"path": dir + "/none"}}}, `runtime "other"`},
		{"runtimes", map[string]any{"runtimes": map[string]any{"other": map[string]any{"path": plain}}}, "permission denied"},
		{"init-path", map[string]any{"init-path": dir + "/none"}, "install it, or give the path of a program"},
		{"data-root", map[string]any{"data-root": plain}, "is not a folder"},
		{"default-network-opts", networkOpts("bridge", "com.docker.network.driver.mtu", "abc"), "driver bridge: invalid option com.docker.network.driver.mtu=abc: want 68 to 65535"},
		{"default-network-opts", networkOpts("bridge", "com.docker.network.enable_ipv6", "maybe"), "want true or false"},
		{"default-network-opts", networkOpts("bridge", "com.docker.network.bridge.gateway_mode_ipv4", "open"), "gateway_mode_ipv4"},
		{"default-network-opts", networkOpts("bridge", "com.docker.network.container_iface_prefix", "too/long"), "container_iface_prefix"},
		{"default-network-opts", networkOpts("macvlan", "com.docker.network.driver.mtu", "1"), "driver macvlan"},
		{"default-gateway", map[string]any{"bip": "10.9.0.1/24", "default-gateway": "10.8.0.1"}, "not within the bridge's network"},
		{"default-gateway", map[string]any{"fixed-cidr": "10.9.0.0/24", "default-gateway": "10.8.0.1"}, "not within the bridge's network"},
		{"default-gateway-v6", map[string]any{"bip6": "fd00:9::1/64", "default-gateway-v6": "fd00:8::1"}, "not within the bridge's network"},
		{"default-gateway", map[string]any{"bridge": "lo", "default-gateway": "10.8.0.1"}, "not within the networks of the bridge lo"},
	}
}

func networkOpts(driver, option, value string) map[string]any {
	return map[string]any{"default-network-opts": map[string]any{driver: map[string]string{option: value}}}
}

func TestWhatCantBeUsedIsRefusedByValidateWithKeyAndRemedy(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"cut.json": `{"defaultAction": `, "plain": "text"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range unusable(dir) {
		text, err := json.Marshal(tc.set)
		if err != nil {
			t.Fatal(err)
		}
		code, out, errs := output(t, "--validate", "--config-file", write(t, string(text)))
		if code != 1 || strings.Contains(out, "OK") || !strings.Contains(errs, tc.key) || !strings.Contains(errs, tc.want) {
			t.Errorf("%s: exit code %d, %q, want the key %s and %q", text, code, out+errs, tc.key, tc.want)
		}
	}
	if code, out, errs := output(t, "--validate", "--config-file", write(t, `{"log-driver": "local", "log-opts": {"tag": "{{.Name}}"}, "storage-driver": "overlay2", "default-runtime": "io.containerd.runc.v2", "group": "0"}`)); code != 0 {
		t.Errorf("%d %s%s", code, out, errs)
	}
}

func TestSeveralFaultsAreToldAtOnce(t *testing.T) {
	flags, err := config.ParseFlags([]string{"--log-driver", "nonsense", "--storage-driver", "zfs", "--config-file", write(t, "{}")})
	if err != nil {
		t.Fatal(err)
	}
	_, err = loadConfig(flags)
	if err == nil || !strings.Contains(err.Error(), "log-driver: ") || !strings.Contains(err.Error(), "storage-driver: ") {
		t.Error(err)
	}
}
