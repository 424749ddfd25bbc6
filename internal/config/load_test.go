// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"sort"
	"strings"
	"testing"
)

// load calls Load with a file's content; "-" means no file.
func load(t *testing.T, file string, args ...string) (*Config, error) {
	t.Helper()
	f, err := ParseFlags(args)
	if err != nil {
		return nil, err
	}
	return Load(f, func(name string) ([]byte, error) {
		if file == "-" {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		return []byte(file), nil
	})
}

func mustLoad(t *testing.T, file string, args ...string) *Config {
	t.Helper()
	c, err := load(t, file, args...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The unit of the service has -H fd:// on its command line.
func TestHostsOfTheFileComeBesideTheSocketsOfTheServiceManager(t *testing.T) {
	for _, tc := range []struct {
		file string
		args []string
		want []string
	}{
		{`{"hosts": ["tcp://127.0.0.1:2375", "unix:///x.sock"]}`, []string{"-H", "fd://"}, []string{"fd://", "tcp://127.0.0.1:2375", "unix:///x.sock"}},
		{`{"hosts": ["fd://", "unix:///x.sock"]}`, []string{"-H", "fd://"}, []string{"fd://", "unix:///x.sock"}},
		{`{"hosts": []}`, []string{"-H", "fd://a", "-H", "fd://b"}, []string{"fd://a", "fd://b"}},
	} {
		if got := mustLoad(t, tc.file, tc.args...).Hosts; !slices.Equal(got, tc.want) {
			t.Errorf("%s beside %v: got %v, want %v", tc.file, tc.args, got, tc.want)
		}
	}
	if _, err := load(t, `{"hosts": ["unix:///x.sock"]}`, "-H", "fd://", "-H", "unix:///y.sock"); err == nil || !strings.Contains(err.Error(), "both as a flag and in the configuration file") {
		t.Errorf("an address on both sides: %v", err)
	}
}

// dockerdFlags are the flags of dockerd 29, including hidden and formerly
// deprecated ones.
const dockerdFlags = `add-runtime allow-direct-routing allow-nondistributable-artifacts api-cors-header authorization-plugin bip bip6
bridge bridge-accept-fwmark cdi-spec-dir cgroup-parent config-file containerd containerd-namespace containerd-plugins-namespace
cpu-rt-period cpu-rt-runtime cri-containerd data-root debug default-address-pool default-cgroupns-mode default-gateway
default-gateway-v6 default-ipc-mode default-network-opt default-runtime default-shm-size default-ulimit dns dns-opt dns-search
exec-opt exec-root experimental feature firewall-backend fixed-cidr fixed-cidr-v6 group host host-gateway-ip http-proxy
https-proxy icc init init-path insecure-registry ip ip-forward ip-forward-no-drop ip-masq ip6tables iptables ipv6 label
live-restore log-driver log-format log-level log-opt max-concurrent-downloads max-concurrent-uploads max-download-attempts
metrics-addr mtu network-control-plane-mtu network-diagnostic-port no-new-privileges no-proxy node-generic-resource nri-opts
oom-score-adjust pidfile raw-logs registry-mirror restart rootless seccomp-profile selinux-enabled shutdown-timeout
storage-driver storage-opt swarm-default-advertise-addr tls tlscacert tlscert tlskey tlsverify userland-proxy
userland-proxy-path userns-remap`

func TestEveryFlagOfDockerdExistsUnderItsName(t *testing.T) {
	have := map[string]bool{}
	for _, o := range Options() {
		have[o.Flag] = true
	}
	for _, name := range strings.Fields(dockerdFlags) {
		if !have[name] {
			t.Errorf("--%s is not known", name)
		}
	}
	for _, name := range []string{"help", "version", "validate"} {
		if _, err := ParseFlags([]string{"--" + name}); err != nil {
			t.Error(err)
		}
	}
}

func TestEveryOptionSaysWhatBecomesOfIt(t *testing.T) {
	seen := map[string]bool{}
	for _, o := range Options() {
		for _, n := range []string{"flag " + o.Flag, "short " + o.Short, "key " + o.Key, "key " + o.Alias} {
			if seen[n] && !strings.HasSuffix(n, " ") {
				t.Errorf("%s is there twice", n)
			}
			seen[n] = true
		}
		if (o.Support == Honoured) != (o.field != nil) {
			t.Errorf("%s is %s, with a field: %v", o.name(), o.Support, o.field != nil)
		}
		if o.Support != Honoured && o.Reason == "" {
			t.Errorf("%s is %s without a reason", o.name(), o.Support)
		}
		if !slices.Contains([]Class{Live, NewObjects, NewAtStart, Restart, Root}, o.Class) {
			t.Errorf("%s has class %q", o.name(), o.Class)
		}
	}
	if _, err := defaults(); err != nil {
		t.Error(err)
	}
}

func TestHonouredOptionIsReadFromFlagAndFile(t *testing.T) {
	flag := map[Kind]string{Bool: "true", Int: "70", IP: "10.9.8.7", Bytes: "1g", IPList: "10.9.8.7", Map: "a=b", MapMap: "bridge=a=b", BoolMap: "containerd-snapshotter=true", Pools: "base=10.9.0.0/16,size=24", Ulimits: "nofile=1:2", Runtimes: "crun=/usr/bin/crun"}
	file := map[Kind]string{Bool: "true", Int: "70", IP: `"10.9.8.7"`, Bytes: `"1g"`, IPList: `["10.9.8.7"]`, Map: `{"a":"b"}`, MapMap: `{"bridge":{"a":"b"}}`, BoolMap: `{"containerd-snapshotter":true}`, Pools: `[{"base":"10.9.0.0/16","size":24}]`, Ulimits: `{"nofile":{"Soft":1,"Hard":2}}`, Runtimes: `{"crun":{"path":"/usr/bin/crun"}}`}
	special := map[string]string{
		"bip": "10.1.0.1/16", "bip6": "fd00::1/64", "fixed-cidr": "10.1.2.0/24", "fixed-cidr-v6": "fd00::/80",
		"default-cgroupns-mode": "private", "default-ipc-mode": "shareable", "default-runtime": "runc", "default-gateway-v6": "fd00::2",
		"exec-opt": "native.cgroupdriver=cgroupfs", "host": "tcp://127.0.0.1:2375", "label": "a=b", "log-format": "json", "log-level": "warn",
		"min-api-version": "1.40", "registry-mirror": "https://mirror.example.com/", "dns-search": "example.com", "registry-token-host": "registry.example.com=auth.example.net",
		"node-generic-resource": "ssd=3",
		"api-allowed-origin":    "https://ui.example.com:8443",
		"http-proxy":            "http://proxy.example.com:3128", "https-proxy": "proxy.example.com:3128",
	}
	for _, o := range Options() {
		if o.Support != Honoured || o.Flag == "config-file" || o.Key == "" || o.Flag == "" {
			continue
		}
		fv, jv := flag[o.Kind], file[o.Kind]
		if o.Kind == String || o.Kind == List || special[o.Flag] != "" {
			fv = "/some/path"
			if s := special[o.Flag]; s != "" {
				fv = s
			} else if o.Flag == "bridge" || o.Kind == List {
				fv = "name"
			}
			b, _ := json.Marshal(fv)
			if jv = string(b); o.Kind == List {
				jv = "[" + jv + "]"
			}
		}
		t.Run(o.Key, func(t *testing.T) {
			byFlag := mustLoad(t, "-", "--"+o.Flag+"="+fv)
			text := fmt.Sprintf("{%q: %s}", o.Key, jv)
			if o.Parent != "" {
				text = fmt.Sprintf("{%q: %s}", o.Parent, text)
			}
			byFile := mustLoad(t, text)
			a, b := o.field(byFlag), o.field(byFile)
			if !reflect.DeepEqual(a, b) {
				t.Errorf("flag gives %s, file gives %s", text1(a), text1(b))
			}
			if empty(reflect.ValueOf(a).Elem()) {
				t.Error("the value did not arrive")
			}
			if len(byFlag.Warnings())+len(byFile.Warnings()) > 0 {
				t.Error(byFlag.Warnings(), byFile.Warnings())
			}
			if !byFile.Given(o.Key) || !byFlag.Given(o.Key) {
				t.Error("not known as given")
			}
		})
	}
}

func text1(p any) string { return text(p) }

// emptyValues returns a file in which every key has an empty value, as in the
// full example of Docker's documentation.
func emptyValues() string {
	m := map[string]any{}
	for _, o := range Options() {
		if o.Key == "" {
			continue
		}
		var v any
		switch o.Kind {
		case Bool:
			v = o.Default == "true"
		case Int:
			v = 0
		case List, IPList, Pools:
			v = []string{}
		case Map, MapMap, BoolMap, Ulimits, Runtimes, Object:
			v = map[string]string{}
		default:
			v = ""
		}
		if o.Parent != "" {
			if m[o.Parent] == nil {
				m[o.Parent] = map[string]any{}
			}
			m[o.Parent].(map[string]any)[o.Key] = v
			continue
		}
		m[o.Key] = v
	}
	b, _ := json.Marshal(m)
	return string(b)
}

func TestEmptyValuesOfTheFileAreDefaults(t *testing.T) {
	c := mustLoad(t, emptyValues())
	if w := c.Warnings(); len(w) > 0 {
		t.Error(w)
	}
	if d := Diff(mustLoad(t, "-"), c); len(d) > 0 {
		t.Errorf("differs from the defaults: %v", d)
	}
}

func TestUnsupportedOptionIsNamed(t *testing.T) {
	arg := map[Kind]string{Bool: "true", Int: "7", String: "x", List: "x", Map: "a=b", MapMap: "bridge=a=b", Object: "enable=true"}
	for _, o := range Options() {
		if o.Support == Honoured || o.Flag == "" {
			continue
		}
		v := arg[o.Kind]
		if o.Default == "true" {
			v = "false"
		}
		c, err := load(t, "-", "--"+o.Flag+"="+v)
		switch {
		case o.Support == Refused && err == nil:
			t.Errorf("%s was taken", o.name())
		case o.Support == Refused && (!strings.Contains(err.Error(), o.name()) || !strings.Contains(err.Error(), o.Reason)):
			t.Errorf("%s: %v", o.name(), err)
		case o.Support == Ignored && err != nil:
			t.Errorf("%s: %v", o.name(), err)
		case o.Support == Ignored && (len(c.Warnings()) != 1 || !strings.Contains(c.Warnings()[0], o.name())):
			t.Errorf("%s: warnings %q", o.name(), c.Warnings())
		}
	}
}

func TestFlagAndFileTogetherStopTheStart(t *testing.T) {
	const prefix = "unable to configure the Holdfast daemon with file /x/daemon.json: the following directives are specified both as a flag and in the configuration file: "
	for _, tc := range []struct {
		name, file string
		args       []string
		want       string // empty means no conflict
	}{
		{"live-restore", `{"live-restore": true}`, []string{"--live-restore"}, "live-restore: (from flag: true, from file: true)"},
		{"false too", `{"live-restore": false}`, []string{"--live-restore=false"}, "live-restore: (from flag: false, from file: false)"},
		{"list by its plural", `{"labels": ["a=b", "c=d"]}`, []string{"--label", "e=f", "--label", "g=h"}, "labels: (from flag: [e=f g=h], from file: [a=b c=d])"},
		{"hosts", `{"hosts": ["fd://"]}`, []string{"-H", "unix:///x.sock"}, "hosts: (from flag: [unix:///x.sock], from file: [fd://])"},
		{"several, by flag name", `{"mtu": 1400, "debug": true, "log-opts": {"max-size": "1k"}}`, []string{"--mtu=1300", "-D", "--log-opt", "max-file=2"}, "debug: (from flag: true, from file: true), log-opts: (from flag: map[max-file:2], from file: map[max-size:1k]), mtu: (from flag: 1300, from file: 1400)"},
		{"nested, credentials hidden", `{"proxies": {"http-proxy": "http://u:p@b"}}`, []string{"--http-proxy=http://u:p@a"}, "http-proxy: (from flag: http://xxxxx:xxxxx@a, from file: http://xxxxx:xxxxx@b)"},
		{"older name of a key", `{"host-gateway-ip": "10.0.0.1"}`, []string{"--host-gateway-ip=10.0.0.2"}, "host-gateway-ip: (from flag: [10.0.0.2], from file: 10.0.0.1)"},
		{"runtimes may be on both sides", `{"runtimes": {"a": {"path": "/a"}}}`, []string{"--add-runtime", "b=/b"}, ""},
		{"different keys", `{"debug": true}`, []string{"--live-restore"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := load(t, tc.file, append(tc.args, "--config-file=/x/daemon.json")...)
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if tc.name[0] == 'r' && len(c.Runtimes) != 2 {
					t.Errorf("runtimes %v", c.Runtimes)
				}
				return
			}
			if err == nil || err.Error() != prefix+tc.want {
				t.Errorf("got  %v\nwant %s", err, prefix+tc.want)
			}
		})
	}
}

func TestBadFileIsNamedWithItsPlace(t *testing.T) {
	for _, tc := range []struct{ name, file, want string }{
		{"unknown key", `{"foo": 1}`, "the following directives don't match any configuration option: foo"},
		{"several unknown keys", `{"foo": 1, "debug": true, "bar": 2}`, "option: bar, foo"},
		{"singular of a list", `{"label": ["a=b"]}`, "option: label"},
		{"unknown key in a group", `{"proxies": {"ftp-proxy": ""}}`, "option: ftp-proxy"},
		{"comma too many", "{\n  \"debug\": true,\n}", "line 3, column 1: invalid character '}'"},
		{"quote missing", "{\n  \"debug: true\n}", "line 2, column 15: invalid character"},
		{"cut off", `{"debug": `, "line 1, column 10: unexpected end of JSON input"},
		{"rest after it", "{}\nx", "line 2, column 1: invalid character 'x' after top-level value"},
		{"no object", `[1]`, `want an object such as {"live-restore": true}`},
		{"not text", "\xff\xfe{", "not UTF-8"},
		{"wrong type", "{\n  \"debug\": true,\n  \"live-restore\": \"yes\"}", `line 3, column 19: live-restore: want true or false, not "yes"`},
		{"wrong type in a group", "{\"proxies\": {\n\"no-proxy\": 1}}", `line 2, column 13: no-proxy: want text in quotes, not 1`},
		{"group of a wrong type", `{"proxies": []}`, `proxies: want an object, not []`},
		{"fraction", `{"mtu": 1.5}`, "mtu: want a whole number, not 1.5"},
		{"list as text", `{"labels": "a=b"}`, `labels: want a list of texts, not "a=b"`},
		{"log options must be texts", `{"log-opts": {"max-file": 3}}`, "log-opts: want an object whose values are texts in quotes"},
		{"twice", `{"debug": true, "debug": false}`, "debug is specified twice"},
		{"both names", `{"host-gateway-ip": "10.0.0.1", "host-gateway-ips": ["10.0.0.2"]}`, "host-gateway-ip and host-gateway-ips must not both be specified"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := load(t, tc.file)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %s", err, tc.want)
			}
			if !strings.HasPrefix(err.Error(), "unable to configure the Holdfast daemon with file /etc/holdfast/daemon.json: ") {
				t.Errorf("no file in %q", err)
			}
		})
	}
}

func TestAbsentFileIsFineOnlyByDefault(t *testing.T) {
	if _, err := load(t, "-"); err != nil {
		t.Error(err)
	}
	if _, err := load(t, "-", "--config-file", "/no/such"); err == nil || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("got %v", err)
	}
	for _, blank := range []string{"", " \n", "\xef\xbb\xbf{}"} {
		mustLoad(t, blank)
	}
}

func TestBadValueIsNamedWithWhatToDo(t *testing.T) {
	for _, tc := range []struct {
		arg, want string
	}{
		{"--log-level=loud", "invalid logging level: loud"},
		{"--log-format=xml", "invalid log format: xml"},
		{"--label=x", "bad attribute format: x"},
		{"--data-root=var", `invalid data-root "var": want an absolute path`},
		{"--exec-root=/", "want a folder of the daemon's own"},
		{"--bip=10.0.0.0/24", "that is the network's own address"},
		{"--bip=10.0.0.255/24", "broadcast address"},
		{"--bip=10.0.0.1/32", "no room for a container"},
		{"--bip=10.0.0.1", "such as 192.168.5.1/24"},
		{"--bip=fd00::1/64", "IPv4 address"},
		{"--fixed-cidr=x", "such as 192.168.5.0/25"},
		{"--bridge=much-too-long-a-name", "at most 15"},
		{"--default-gateway=fd00::1", "want an IPv4 address"},
		{"--default-address-pool=base=10.0.0.0/16", "invalid pool size 0"},
		{"--default-address-pool=base=10.0.0.0/16,size=8", "invalid pool size 8"},
		{"--default-address-pool=bse=10.0.0.0/16", "unexpected key 'bse'"},
		{"--default-shm-size=64X", "invalid size: '64X'"},
		{"--default-ulimit=nofile=9:1", "soft limit must be less than or equal to hard limit"},
		{"--default-ulimit=files=1", "invalid ulimit type: files"},
		{"--default-runtime=crun", "does not exist"},
		{"--add-runtime=runc=/x", "'runc' is reserved"},
		{"--add-runtime=crun", "want name=path"},
		{"--exec-opt=native.cgroupdriver=x", "want cgroupfs or systemd"},
		{"--exec-opt=foo=x", "unknown option: 'foo'"},
		{"--exec-opt=foo", "must be formatted 'opt=value'"},
		{"--default-ipc-mode=host", `use "shareable" or "private"`},
		{"--default-cgroupns-mode=x", `use "host" or "private"`},
		{"--registry-mirror=mirror:5000", "must use either 'https://' or 'http://'"},
		{"--registry-mirror=https://m/?q=1", "query or fragment"},
		{"--insecure-registry=a:b", "invalid port"},
		{"--registry-token-host=registry.example.com", "want REGISTRY=HOST"},
		{"--registry-token-host=a=https://b", "want REGISTRY=HOST"},
		{"--http-proxy=http://", "want a URL"},
		{"--http-proxy=http://:3128", "want a URL"},
		{"--http-proxy=:::bad", "want a URL"},
		{"--http-proxy=proxy.example.com:port", "want a URL"},
		{"--https-proxy=ftp://proxy.example.com", "want a URL"},
		{"--https-proxy=//proxy.example.com", "want a URL"},
		{"--max-concurrent-downloads=0", "want 1 or more"},
		{"--mtu=1", "invalid default MTU: 1"},
		{"--mtu=x", "want a whole number"},
		{"--oom-score-adjust=2000", "-1000 to 1000"},
		{"--dns=x", "x is not an ip address"},
		{"--dns-search=a b", "is not a valid domain"},
		{"--host-gateway-ip=10.0.0.1,10.0.0.2", "only one IPv4"},
		{"--min-api-version=1.12", "minimum supported API version is 1.24"},
		{"--min-api-version=v1.44", "without \"v\""},
		{"--api-allowed-host=http://ui.example.com", "without scheme and port"},
		{"--api-allowed-host=ui.example.com:2375", "without scheme and port"},
		{"--api-allowed-origin=ui.example.com", "want an origin such as"},
		{"--api-allowed-origin=https://ui.example.com/", "without a path"},
		{"-Hftp://x", "unsupported proto 'ftp'"},
		{"-Hunix://x", "want an absolute path"},
		{"-Htcp://h:99999", "invalid port 99999"},
		{"-Htcp://h/x", "should not contain a path"},
		{"--debug=maybe", "want true or false"},
		{"--foo", "unknown flag: --foo"},
		{"-X", "unknown shorthand flag: 'X'"},
		{"--mtu", "flag needs an argument: --mtu"},
		{"-H", "flag needs an argument: -H"},
		{"start", `accepts no arguments`},
		{"--seccomp-profile=x", "want an absolute path, builtin or unconfined"},
	} {
		if _, err := load(t, "-", tc.arg); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %s", tc.arg, err, tc.want)
		}
	}
	if _, err := load(t, "-", "--label=a=1", "--label=a=2"); err == nil || !strings.Contains(err.Error(), "conflict labels for a=2 and a=1") {
		t.Error(err)
	}
	for _, file := range []string{
		`{"runtimes": {"x": {}}}`, `{"runtimes": {"x": {"path": "/x", "runtimeType": "io.containerd.runc.v2"}}}`,
		`{"runtimes": {"x": {"runtimeType": "io.containerd.kata.v2"}}}`, `{"runtimes": {"a b": {"path": "/x"}}}`,
		`{"default-ulimits": {"nofile": {"Name": "nproc"}}}`,
	} {
		if _, err := load(t, file); err == nil {
			t.Errorf("%s was taken", file)
		}
	}
}

func TestFlagsAreReadInTheGNUManner(t *testing.T) {
	c := mustLoad(t, "-", "-D", "-lwarn", "-G", "staff", "-H=unix:///a", "-Hunix:///b", "--host", "tcp://:1", "--host=127.0.0.1:2", "--icc=false", "--")
	if !c.Debug || c.LogLevel != "warn" || c.Group != "staff" || c.ICC {
		t.Errorf("%+v", c)
	}
	if want := []string{"unix:///a", "unix:///b", "tcp://:1", "tcp://127.0.0.1:2"}; !reflect.DeepEqual(c.Addresses(), want) {
		t.Errorf("hosts %q", c.Addresses())
	}
	f, err := ParseFlags([]string{"--validate", "-v", "--help"})
	if err != nil || !f.Validate || !f.Version || !f.Help {
		t.Errorf("%+v %v", f, err)
	}
}

func TestPathsFollowTheExecRoot(t *testing.T) {
	c := mustLoad(t, "-", "--exec-root=/x/")
	if got := c.Addresses(); len(got) != 1 || got[0] != "unix:///x/holdfast.sock" {
		t.Error(got)
	}
	if c.PidfilePath() != "/x/holdfastd.pid" {
		t.Error(c.PidfilePath())
	}
	c = mustLoad(t, "-")
	if c.Addresses()[0] != "unix:///run/holdfast/holdfast.sock" || c.DataRoot != "/var/lib/holdfast" {
		t.Error(c.Addresses(), c.DataRoot)
	}
}

func TestTLSVerifyIsOnUnlessSwitchedOff(t *testing.T) {
	for _, tc := range []struct {
		args        []string
		use, verify bool
	}{
		{nil, false, false},
		{[]string{"--tls"}, true, true},
		{[]string{"--tlsverify"}, true, true},
		{[]string{"--tlsverify=false"}, true, false},
		{[]string{"--tls=false"}, false, false},
	} {
		c := mustLoad(t, "-", tc.args...)
		if c.UseTLS() != tc.use || c.VerifyClients() != tc.verify {
			t.Errorf("%v: use %v, verify %v", tc.args, c.UseTLS(), c.VerifyClients())
		}
	}
}

func TestValueHarmlessToIgnoreIsTakenSilently(t *testing.T) {
	for _, arg := range []string{"--firewall-backend=nftables", "--nri-opts=enable=false", "--storage-opt=overlay2.override_kernel_check=true", "--cri-containerd=false", "--selinux-enabled=false", "--userns-remap=", "--feature=containerd-snapshotter"} {
		if w := mustLoad(t, "-", arg).Warnings(); len(w) > 0 {
			t.Errorf("%s: %q", arg, w)
		}
	}
	if w := mustLoad(t, "-", "--feature=foo").Warnings(); len(w) != 1 || !strings.Contains(w[0], "foo") {
		t.Error(w)
	}
}

func TestSizesAreReadAsDockerReadsThem(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "64": 64, "64b": 64, "1k": 1024, "64M": 64 << 20, "64MiB": 64 << 20, "1.5g": 3 << 29, "2 TB": 2 << 40} {
		if got, err := ParseBytes(s); err != nil || got != want {
			t.Errorf("%s: %d %v", s, got, err)
		}
	}
	for _, s := range []string{"", "m", "-1", "1x", "1kk", "9999999p", "NaN"} {
		if n, err := ParseBytes(s); err == nil {
			t.Errorf("%q is %d", s, n)
		}
	}
}

func TestUsageNamesEveryFlagThatIsNotHidden(t *testing.T) {
	u := Usage()
	for _, o := range Options() {
		if o.Flag != "" && strings.Contains(u, " --"+o.Flag+" ") == o.Hidden {
			t.Errorf("--%s, hidden %v", o.Flag, o.Hidden)
		}
	}
	var flags []string
	for _, line := range strings.Split(u, "\n") {
		if i := strings.Index(line, "--"); i > 0 && i < 7 {
			flags = append(flags, strings.Fields(line[i:])[0])
		}
	}
	if len(flags) < 90 || !sort.StringsAreSorted(flags[:len(flags)-4]) {
		t.Errorf("%d flags, sorted: %v", len(flags), sort.StringsAreSorted(flags[:len(flags)-4]))
	}
}
