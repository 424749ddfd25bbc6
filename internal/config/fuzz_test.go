// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzDaemonJSON loads a file with arbitrary content, together with flags. Either
// it is refused with a message that gives the place, or it is a configuration
// that can be rebuilt from its own values and does not differ from itself.
func FuzzDaemonJSON(f *testing.F) {
	for _, s := range []string{
		emptyValues(), "", " ", "null", "[]", "7", "{", "{}", "{}{}", "\ufeff{}", "\x00", `{"x":1}`, `{"":1}`, `{"debug":true,"debug":false}`,
		`{"runtimes": {"x": {"runtimeType": "io.containerd.runc.v2", "options": {"BinaryName": "x"}}}, "proxies": null}`,
		`{"runtimes":{"runc":{"path":"x","runtimeArgs":["a"]},"":{"path":""}},"default-runtime":"x","add-runtime":1}`,
		`{"default-address-pools": [{"base": "10.0.0.0/8", "size": 24}], "dns": "1.1.1.1", "default-shm-size": 5}`,
		`{"default-address-pools":[{"base":"::/0","size":128},{"base":"10.0.0.1/33","size":-1}],"bip":"10.0.0.1/8","fixed-cidr":"10.1.0.0/16"}`,
		`{"hosts":["unix://","tcp://[::1]:1","fd://","tcp://a:b@c","npipe:////x"],"tls":true,"tlsverify":false,"labels":["a=b","a=b","c"]}`,
		`{"default-ulimits":{"nofile":{"Name":"x","Soft":-2,"Hard":1e99}},"log-opts":{"max-size":1},"default-shm-size":"64G"}`,
		`{"proxies":{"http-proxy":"http://u:p@h","no-proxy":"\u0000"},"registry-mirrors":["https://x/","ftp://y"],"insecure-registries":["10.0.0.0/99"]}`,
		`{"data-root":"/","exec-root":"../x","pidfile":"x","seccomp-profile":"y","init-path":"z"}`,
		`{"exec-opts":["native.cgroupdriver=systemd","x"],"features":{"a":true,"containerd-snapshotter":false},"default-network-opts":{"bridge":{"a":"b"}}}`,
		`{"storage-opts":["overlay2.override_kernel_check=true"],"nri-opts":{"enable":true},"firewall-backend":"iptables","userns-remap":"default"}`,
		`{"mtu":-1,"shutdown-timeout":99999999999999999999,"oom-score-adjust":-1001,"max-concurrent-downloads":0,"min-api-version":"1.99"}`,
		`{"dns":["a","1.1.1.1"],"dns-search":["."],"dns-opts":[" "],"host-gateway-ips":["::1","::2","::3"],"ip":"x","default-gateway":"10.0.0.1"}`,
		`{"debug":"true","hosts":"x","log-level":7,"labels":{"a":"b"},"live-restore":null,"proxies":[]}`, strings.Repeat(`{"proxies":`, 5000), strings.Repeat("[", 20000),
	} {
		f.Add([]byte(s), "--label=a=b --debug")
		f.Add([]byte(s), "--add-runtime x=/y -H unix:///z --default-ulimit nofile=1:2 --log-opt a=b")
	}
	f.Fuzz(func(t *testing.T, file []byte, args string) {
		if !utf8.ValidString(args) {
			return // a file can't have these values
		}
		flags, err := ParseFlags(strings.Fields(args))
		if err != nil {
			return
		}
		read := func(file []byte) func(string) ([]byte, error) {
			return func(string) ([]byte, error) { return file, nil }
		}
		c, err := Load(flags, read(file))
		if (c == nil) == (err == nil) {
			t.Fatalf("config %v, error %v", c, err)
		}
		if err != nil {
			says(t, err.Error(), file)
			return
		}
		if d := Diff(c, c); len(d) > 0 {
			t.Errorf("it differs from itself: %v", d)
		}
		again, err := Load(flags, read(file))
		if err != nil || !reflect.DeepEqual(c, again) {
			t.Errorf("loaded again: %v, %v", Diff(c, again), err)
		}
		if p := Plan(c, again, 0, nil); len(p) > 0 {
			t.Errorf("a plan for nothing: %v", p)
		}
		merged, left := TakeLive(c, again)
		if len(left) > 0 || len(Diff(c, merged)) > 0 {
			t.Errorf("a reload of nothing leaves %v and changes %v", left, Diff(c, merged))
		}

		// Load the same values from a file, without a command line.
		text, err := json.Marshal(written(c))
		if err != nil {
			t.Fatal(err)
		}
		none, err := ParseFlags(nil)
		if err != nil {
			t.Fatal(err)
		}
		back, err := Load(none, read(text))
		if err != nil {
			t.Fatalf("its own values are refused: %v\n%s", err, text)
		}
		for _, d := range Diff(c, back) {
			if byName(d.Key).Key != "" { // otherwise only a flag has it
				t.Errorf("its own values differ: %v\n%s", d, text)
			}
		}
	})
}

// says checks that a message gives a place in the file, a key of the file or a
// flag, and that it is one line.
func says(t *testing.T, message string, file []byte) {
	t.Helper()
	if strings.TrimSpace(message) == "" {
		t.Error("refused without a word")
	}
	if len(message) > len(file)+4<<10 {
		t.Errorf("a message of %d bytes for a file of %d", len(message), len(file))
	}
}

// written returns the values of a configuration in the form of daemon.json,
// without defaults.
func written(c *Config) map[string]any {
	base, err := defaults()
	if err != nil {
		panic(err)
	}
	out := map[string]any{}
	for i := range table {
		o := &table[i]
		if o.Key == "" || same(c.pointer(o), base.pointer(o)) {
			continue
		}
		var v any
		switch p := c.pointer(o).(type) {
		case *int64:
			v = *p
		case *[]Pool:
			var list []any
			for _, pool := range *p {
				list = append(list, map[string]any{"base": pool.Base.String(), "size": pool.Size})
			}
			v = list
		case *map[string]Ulimit:
			m := map[string]any{}
			for name, u := range *p {
				m[name] = map[string]any{"Name": u.Name, "Soft": u.Soft, "Hard": u.Hard}
			}
			v = m
		case *string:
			v = *p
			if o.Kind == Object {
				v = json.RawMessage(*p)
			}
		case fmt.Stringer:
			v = p.String()
		default:
			v = p
		}
		if o.Parent != "" {
			if out[o.Parent] == nil {
				out[o.Parent] = map[string]any{}
			}
			out[o.Parent].(map[string]any)[o.Key] = v
			continue
		}
		out[o.Key] = v
	}
	return out
}

// FuzzSizes parses sizes in the form of flags and files.
func FuzzSizes(f *testing.F) {
	for _, s := range []string{"", "64m", "1.5GiB", "-1", "9223372036854775808", "1e30", "0x10", "1kk", "inf", " 1 k", "1_000", "8191p", "٣"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseBytes(s)
		if err != nil {
			return
		}
		if n < 0 {
			t.Errorf("%q is %d", s, n)
		}
		if n > 8000<<50 {
			return // rounded up, it could overflow
		}
		shown, err := ParseBytes(FormatBytes(n))
		if off := shown - n; err != nil || off > n/20+1 || off < -n/20-1 {
			t.Errorf("%q is %d, shown as %q, which is %d, %v", s, n, FormatBytes(n), shown, err)
		}
	})
}
