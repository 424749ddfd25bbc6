// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"sort"
	"strings"
	"testing"

	"holdfast/test/golden"
)

const (
	optionsPage  = "../../docs/options.md"
	tableBegins  = "<!-- The table below is written by go test ./internal/config -run OptionsPage -update -->\n"
	tableEndings = "<!-- end of the table -->\n"
)

// found are the defaults that the table of options can't name, because the
// daemon chooses them when it starts.
var found = map[string]string{
	"bip":                   "the first free one of `default-address-pools`",
	"bip6":                  "as `fixed-cidr-v6`",
	"bridge":                "`holdfast0`, which the daemon makes",
	"default-address-pools": "172.17.0.0/16 to 172.31.0.0/16 by /16, 192.168.0.0/16 by /20",
	"default-cgroupns-mode": "`private` with cgroup v2, else `host`",
	"default-gateway":       "the bridge's address",
	"default-gateway-v6":    "the bridge's address",
	"dns":                   "those of the host",
	"dns-opts":              "those of the host",
	"dns-search":            "those of the host",
	"exec-opts":             "cgroup driver `systemd` with systemd and cgroup v2, else `cgroupfs`",
	"fixed-cidr":            "the bridge's subnet",
	"fixed-cidr-v6":         "a subnet of fd00::/8",
	"host-gateway-ips":      "the default bridge's addresses",
	"hosts":                 "`unix://EXEC-ROOT/holdfast.sock`",
	"init-path":             "`docker-init`, `tini` or `holdfast-init`",
	"pidfile":               "`EXEC-ROOT/holdfastd.pid`",
	"runtimes":              "`runc`, which is always there",
	"storage-driver":        "`overlayfs`, or `native` where that can't be used",
	"tlscacert":             "`~/.docker/ca.pem`",
	"tlscert":               "`~/.docker/cert.pem`",
	"tlskey":                "`~/.docker/key.pem`",
}

// examples are values in daemon.json, one for each key that is honoured.
var examples = map[string]string{
	"allow-direct-routing":         `true`,
	"api-allowed-hosts":            `["docker.example.com"]`,
	"api-allowed-origins":          `["https://ui.example.com:8443"]`,
	"bip":                          `"192.168.5.1/24"`,
	"bip6":                         `"fd00:5::1/64"`,
	"bridge":                       `"br0"`,
	"cgroup-parent":                `"/containers"`,
	"data-root":                    `"/srv/holdfast"`,
	"debug":                        `true`,
	"default-address-pools":        `[{"base": "10.20.0.0/16", "size": 24}]`,
	"default-cgroupns-mode":        `"host"`,
	"default-gateway":              `"192.168.5.254"`,
	"default-gateway-v6":           `"fd00:5::fe"`,
	"default-ipc-mode":             `"shareable"`,
	"default-network-opts":         `{"bridge": {"com.docker.network.driver.mtu": "1400"}}`,
	"default-runtime":              `"runc"`,
	"default-shm-size":             `"128M"`,
	"default-ulimits":              `{"nofile": {"Name": "nofile", "Soft": 1024, "Hard": 65536}}`,
	"dns":                          `["192.0.2.53"]`,
	"dns-opts":                     `["ndots:2"]`,
	"dns-search":                   `["example.com"]`,
	"exec-opts":                    `["native.cgroupdriver=cgroupfs"]`,
	"exec-root":                    `"/run/holdfast2"`,
	"experimental":                 `true`,
	"features":                     `{"containerd-snapshotter": true}`,
	"fixed-cidr":                   `"192.168.5.128/25"`,
	"fixed-cidr-v6":                `"fd00:5::/64"`,
	"group":                        `"holdfast"`,
	"host-gateway-ips":             `["192.0.2.1"]`,
	"hosts":                        `["tcp://127.0.0.1:2375"]`,
	"http-proxy":                   `"http://proxy.example.com:3128"`,
	"https-proxy":                  `"http://proxy.example.com:3128"`,
	"icc":                          `false`,
	"init":                         `true`,
	"init-path":                    `"/usr/bin/tini"`,
	"insecure-registries":          `["registry.lan:5000"]`,
	"ip":                           `"127.0.0.1"`,
	"ip-forward":                   `false`,
	"ip-forward-no-drop":           `true`,
	"ip-masq":                      `false`,
	"ip6tables":                    `false`,
	"iptables":                     `false`,
	"ipv6":                         `true`,
	"labels":                       `["rack=7"]`,
	"node-generic-resources":       `["gpu=UUID1", "gpu=UUID2", "ssd=3"]`,
	"swarm-default-advertise-addr": `"eth0"`,
	"swarm-raft-election-tick":     `10`,
	"swarm-raft-heartbeat-tick":    `1`,
	"live-restore":                 `true`,
	"log-driver":                   `"local"`,
	"log-format":                   `"json"`,
	"log-level":                    `"debug"`,
	"log-opts":                     `{"max-size": "10m", "max-file": "3"}`,
	"max-concurrent-downloads":     `6`,
	"max-concurrent-uploads":       `2`,
	"max-download-attempts":        `10`,
	"min-api-version":              `"1.44"`,
	"mtu":                          `1400`,
	"no-new-privileges":            `true`,
	"no-proxy":                     `"localhost,.lan"`,
	"oom-score-adjust":             `-500`,
	"pidfile":                      `"/run/holdfastd.pid"`,
	"raw-logs":                     `true`,
	"registry-mirrors":             `["https://mirror.lan"]`,
	"registry-token-hosts":         `["registry.example.com=auth.example.net"]`,
	"builder":                      `{"gc": {"defaultKeepStorage": "20GB"}}`,
	"runtimes":                     `{"crun": {"path": "/usr/bin/crun"}}`,
	"seccomp-profile":              `"/etc/holdfast/seccomp.json"`,
	"shutdown-timeout":             `60`,
	"storage-driver":               `"overlay2"`,
	"tls":                          `true`,
	"tlscacert":                    `"/etc/holdfast/ca.pem"`,
	"tlscert":                      `"/etc/holdfast/cert.pem"`,
	"tlskey":                       `"/etc/holdfast/key.pem"`,
	"tlsverify":                    `true`,
	"userland-proxy":               `false`,
}

// standard is what the table says of an option's default.
func (o *Option) standard() string {
	if o.Support != Honoured {
		return ""
	}
	if s := found[o.Key]; s != "" {
		return s
	}
	switch {
	case o.Default != "":
		return "`" + o.Default + "`"
	case o.Kind == Bool:
		return "`false`"
	case o.Kind == Int:
		return "`0`"
	}
	return "none"
}

// page returns the table of docs/options.md.
func page() string {
	var rows []string
	for _, o := range Options() {
		if o.Key == "" {
			continue // flags can't change while a daemon runs and hide no key
		}
		effect := func(e Effect) string {
			if e == EffectNone {
				return "ignored"
			}
			return string(e)
		}
		example := examples[o.Key]
		if example != "" {
			example = "`" + example + "`"
		}
		rows = append(rows, fmt.Sprintf("| `%s` | %s | %s | %s | %s | %s |\n", o.Key, o.standard(), example, effect(o.OnReload()), effect(o.OnRestart()), o.Why()))
	}
	sort.Strings(rows)
	return "| key | default | example | by reload | by restart | running containers, or why not |\n|---|---|---|---|---|---|\n" + strings.Join(rows, "")
}

// An example that the daemon would not take is none.
func TestEveryHonouredKeyHasAnExampleThatIsTaken(t *testing.T) {
	// What an example can't be given without.
	besides := map[string]string{
		"default-gateway": `"bip": "192.168.5.1/24", `,
		"fixed-cidr":      `"bip": "192.168.5.1/24", `,
	}
	keys := map[string]bool{}
	for _, o := range Options() {
		if o.Key == "" {
			continue
		}
		keys[o.Key] = true
		example, has := examples[o.Key]
		if has != (o.Support == Honoured) {
			t.Errorf("%s is %s, and has an example: %v", o.Key, o.Support, has)
			continue
		}
		if !has {
			continue
		}
		c, err := load(t, fmt.Sprintf(`{%s%q: %s}`, besides[o.Key], o.Key, example))
		if err != nil {
			t.Errorf("%s: %v", o.Key, err)
			continue
		}
		if !c.Given(o.Key) {
			t.Errorf("%s: the example is not taken", o.Key)
		}
		for _, w := range c.Warnings() {
			t.Errorf("%s: the example is warned of: %s", o.Key, w)
		}
	}
	for key := range examples {
		if !keys[key] {
			t.Errorf("the example of %s belongs to no option", key)
		}
	}
	for key := range found {
		if !keys[key] {
			t.Errorf("the default of %s belongs to no option", key)
		}
	}
}

func TestOptionsPageIsWhatTheCodeDoes(t *testing.T) {
	golden.Section{
		Path: optionsPage, Begin: tableBegins, End: tableEndings,
		Command: "go test ./internal/config -run OptionsPage -update",
	}.Keep(t, page())
}
