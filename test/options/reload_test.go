// SPDX-License-Identifier: Apache-2.0

package options

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/kit"
)

const (
	ulimit = "ulimit -n"
	resolv = "/etc/resolv.conf"
)

func TestReloadOfContainersDefaultsHoldsForNewContainersOnly(t *testing.T) {
	t.Parallel()
	// Another path of the installed runtime.
	runc := t.TempDir() + "/other-runc"
	if err := os.WriteFile(runc, []byte("#!/bin/sh\nexec runc \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	profile := filepath.Join(t.TempDir(), "seccomp.json")
	if err := os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	contains := func(file, want string) func(*house) {
		return func(h *house) {
			h.Helper()
			if got := h.in("new", "cat", file); !strings.Contains(got, want) {
				h.Errorf("%s of the new container has no %q: %q", file, want, got)
			}
			if got := h.in("old", "cat", file); strings.Contains(got, want) {
				h.Errorf("%s of the old container has %q: %q", file, want, got)
			}
		}
	}
	h := newHouse(t, func(_ *kit.Daemon, keys map[string]any) {
		keys["dns"] = []string{"192.0.2.1"}
		keys["default-ulimits"] = map[string]any{"nofile": map[string]any{"Soft": 500, "Hard": 500}}
	})
	other := h.d.Cgroup + "-other"
	t.Cleanup(func() { removeCgroup(t, other) })
	walk(h, []change{
		{key: "dns", hup: true, set: map[string]any{"dns": []string{"192.0.2.53"}}, check: contains(resolv, "192.0.2.53")},
		{key: "dns-search", hup: true, set: map[string]any{"dns-search": []string{"later.example"}}, check: contains(resolv, "later.example")},
		{key: "dns-opts", hup: true, set: map[string]any{"dns-opts": []string{"timeout:7"}}, check: contains(resolv, "timeout:7")},
		{key: "host-gateway-ips", hup: true, set: map[string]any{"host-gateway-ips": []string{"192.0.2.9"}}, run: []string{"--add-host", "gw:host-gateway"}, check: contains("/etc/hosts", "192.0.2.9")},
		{key: "default-shm-size", hup: true, set: map[string]any{"default-shm-size": "32M"}, check: inspected("{{.HostConfig.ShmSize}}", "67108864", "33554432")},
		{key: "default-ipc-mode", hup: true, set: map[string]any{"default-ipc-mode": "shareable"}, check: inspected("{{.HostConfig.IpcMode}}", "private", "shareable")},
		{key: "default-cgroupns-mode", hup: true, set: map[string]any{"default-cgroupns-mode": "private"}, check: inspected("{{.HostConfig.CgroupnsMode}}", "host", "private")},
		{key: "default-ulimits", hup: true, set: map[string]any{"default-ulimits": map[string]any{"nofile": map[string]any{"Soft": 400, "Hard": 400}}}, check: ran("500", "400", "sh", "-c", ulimit)},
		{key: "init", hup: true, set: map[string]any{"init": true}, check: func(h *house) {
			if got := h.in("new", "cat", "/proc/1/comm"); !strings.Contains(got, "init") {
				h.Errorf("PID 1 of the new container is %q", got)
			}
		}},
		{key: "no-new-privileges", hup: true, set: map[string]any{"no-new-privileges": true}, check: ran("NoNewPrivs:\t0", "NoNewPrivs:\t1", "grep", "NoNewPrivs", "/proc/1/status")},
		{key: "seccomp-profile", hup: true, set: map[string]any{"seccomp-profile": profile}, check: func(h *house) {
			if r := h.d.TryDocker("exec", "new", "mkdir", "/made"); r.Code == 0 {
				h.Error("the new container's seccomp profile permits mkdir")
			}
			h.in("old", "mkdir", "-p", "/made")
		}},
		{key: "log-driver", hup: true, set: map[string]any{"log-driver": "local"}, check: func(h *house) {
			inspected("{{.HostConfig.LogConfig.Type}}", "json-file", "local")(h)
			if got := h.d.Docker("logs", "new"); !strings.HasPrefix(got, "0\n") {
				h.Errorf("the new container's log begins with %.20q", got)
			}
		}},
		{key: "log-opts", hup: true, set: map[string]any{"log-opts": map[string]string{"max-size": "1m"}}, check: inspected("{{json .HostConfig.LogConfig.Config}}", "{}", `{"max-size":"1m"}`)},
		{key: "default-runtime", hup: true, set: map[string]any{"runtimes": map[string]any{"other": map[string]string{"path": runc}}, "default-runtime": "other"}, check: inspected("{{.HostConfig.Runtime}}", "runc", "other")},
		{key: "labels", hup: true, set: map[string]any{"labels": []string{"rack=7"}}, check: info("{{json .Labels}}", `["rack=7"]`)},
		{key: "registry-mirrors", hup: true, set: map[string]any{"registry-mirrors": []string{"https://mirror.example/"}}, check: info("{{json .RegistryConfig.Mirrors}}", `["https://mirror.example/"]`)},
		{key: "insecure-registries", hup: true, set: map[string]any{"insecure-registries": []string{"registry.example:5000"}}, check: info(`{{(index .RegistryConfig.IndexConfigs "registry.example:5000").Secure}}`, "false")},
		{key: "debug", hup: true, set: map[string]any{"debug": true}, check: info("{{.Debug}}", "true")},
		{key: "log-level", hup: true, set: map[string]any{"log-level": "debug"}, check: func(h *house) {
			if !strings.Contains(h.d.Log(), "level=debug") {
				h.Error("no debug message was logged")
			}
		}},
		{key: "runtimes", hup: true, set: map[string]any{"runtimes": map[string]any{"other": map[string]string{"path": runc}}}, run: []string{"--runtime", "other"}, check: inspected("{{.HostConfig.Runtime}}", "runc", "other")},
		{key: "cgroup-parent", hup: true, set: map[string]any{"cgroup-parent": other}, check: func(h *house) {
			for name, want := range map[string]string{"new": other + "/", "old": h.d.Cgroup + "/"} {
				raw, err := os.ReadFile("/proc/" + h.inspect(name, "{{.State.Pid}}") + "/cgroup")
				if err != nil {
					h.Fatal(err)
				}
				if !strings.Contains(string(raw), ":"+want) {
					h.Errorf("the %s container is not below %s:\n%s", name, want, raw)
				}
			}
		}},
		{key: "live-restore", hup: true, set: map[string]any{"live-restore": false}, check: info("{{.LiveRestoreEnabled}}", "false")},
		{key: "shutdown-timeout", hup: true, set: map[string]any{"shutdown-timeout": 77}},
		{key: "max-concurrent-downloads", hup: true, set: map[string]any{"max-concurrent-downloads": 9}},
		{key: "max-concurrent-uploads", hup: true, set: map[string]any{"max-concurrent-uploads": 9}},
		{key: "max-download-attempts", hup: true, set: map[string]any{"max-download-attempts": 9}},
	}, func(h *house) {
		h.want("limit of open files", h.in("old", "sh", "-c", ulimit), "500")
		h.want("new privileges", h.in("old", "grep", "NoNewPrivs", "/proc/1/status"), "NoNewPrivs:\t0")
		h.want("process 1", h.in("old", "cat", "/proc/1/comm"), "sh")
		h.in("old", "mkdir", "/made-again") // the old container has its own seccomp profile
		got := h.in("old", "cat", resolv)
		for _, late := range []string{"192.0.2.53", "later.example", "timeout:7"} {
			if strings.Contains(got, late) {
				h.Errorf("the old container got %s, an option of later containers: %q", late, got)
			}
		}
		if !strings.Contains(got, "nameserver 192.0.2.1") {
			h.Errorf("the old container lost its name server: %q", got)
		}
		h.want("its log driver", h.inspect("old", "{{.HostConfig.LogConfig.Type}}"), "json-file")
	})
}

// removeCgroup removes a cgroup that a test has named, in every hierarchy.
func removeCgroup(t *testing.T, path string) {
	for _, pattern := range []string{"/sys/fs/cgroup" + path, "/sys/fs/cgroup/*" + path} {
		dirs, _ := filepath.Glob(pattern)
		for _, dir := range dirs {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		}
	}
}
