// SPDX-License-Identifier: Apache-2.0

package fuzz

import (
	"encoding/json"
	"math"
	"net/url"
	"reflect"
	"strconv"
	"strings"
)

// choices makes decisions from the fuzzer's bytes. When they are used up, every
// decision is zero.
type choices struct{ b []byte }

func (c *choices) byte() byte {
	if len(c.b) == 0 {
		return 0
	}
	v := c.b[0]
	c.b = c.b[1:]
	return v
}

func (c *choices) of(n int) int { return int(c.byte()) % n }

// oneIn is true once in n times.
func (c *choices) oneIn(n int) bool { return c.of(n) == n-1 }

func pick[T any](c *choices, list ...T) T { return list[c.of(len(list))] }

// Names of the objects that exist before each request; see fixtures.
const (
	web     = "web"     // a running container
	stopped = "stopped" // a stopped container
	image   = "busybox:latest"
	netw    = "net1"
	vol     = "vol1"
)

var long = strings.Repeat("a", 300)

// hostile are values that are valid for no parameter.
var hostile = []string{
	"\x00", "a\x00b", "\n", "a\nb", "\xff\xfe", "é\u202e", "..", "../..", "/..", ".", "/", "//", "-", "--", "-1", "0",
	"99999999999999999999", "-9223372036854775808", "1e309", "NaN", "0x10", "true", "null", "[]", "{}", `{"a":{"b":true}}`,
	`{"a":1}`, `[1,2`, "%", "%00", "%zz", "a=b", "=", ":", "@", "a:b:c", "sha256:", "sha256:zz", " ", "\t", "*", "(", "[", "?#",
	"🐳", "a/b/c", "A", "web\r\nX: y", long, strings.Repeat("/a", 3000), strings.Repeat("../", 2000), strings.Repeat("[", 20000),
}

// safePaths are host paths for mounts and devices. None of them exists.
var safePaths = []string{"", "/tmp/hf-fuzz-none", "relative", "/tmp/hf-fuzz-none/\x00", "/tmp/hf-fuzz-none/" + long, "/tmp/hf-fuzz-none/../hf-fuzz-none"}

// values are the valid values of a parameter or field, by its name in lower
// case.
var values = map[string][]string{
	"image": {image, "busybox", "none:none"}, "fromimage": {"127.0.0.1:1/none", image}, "fromsrc": {"-", "http://127.0.0.1:1/x"},
	"container": {web, stopped, "none"}, "name": {"fuzz1", "fuzz2", web, vol, netw}, "repo": {"fuzz", image}, "tag": {"t1", "latest"},
	"cmd": {"true", "sleep", "60"}, "entrypoint": {"/bin/busybox"}, "path": {"/", "/etc", "/etc/passwd", "/etc/passwd/x", "/none/x", "/proc/1/root"},
	"filters": {`{"label":{"a=b":true}}`, `{"name":["w"]}`, `{"status":{"running":true}}`, `{"until":{"1h":true}}`, `{"before":{"web":true}}`, `{"dangling":{"x":true}}`, `{"type":{"container":true}}`},
	"since":   {"1", "0", "1700000000.5", "2030-01-02T03:04:05Z", "10m"}, "until": {"1", "1700000000", "2000-01-02T03:04:05Z"},
	"condition": {"not-running", "next-exit", "removed"}, "signal": {"TERM", "KILL", "0", "15", "CONT", "WINCH"}, "tail": {"all", "0", "5"},
	"platform": {`{"os":"linux","architecture":"amd64"}`, "linux/amd64", "linux"}, "detachkeys": {"ctrl-p,ctrl-q", "a"}, "changes": {"CMD true", "ENV a=b", "LABEL x"},
	"networkmode": {"default", "none", netw, "container:" + web, "host"}, "ipcmode": {"private", "shareable", "container:" + web}, "pidmode": {"", "container:" + web},
	"driver": {"bridge", "local", "none"}, "logconfig.type": {"json-file", "local", "none", "syslog"}, "type": {"volume", "tmpfs", "container", "json-file", "none"},
	"source": safePaths, "binds": safePaths, "pathonhost": safePaths, "device": safePaths, "binary": {"/nonexistent/holdfastd", "relative", "/dev/null"},
	"cgroupparent": {""}, "target": {"/mnt", "/etc", "/"}, "subnet": {"10.251.0.0/24", "fd00:77::/64"}, "gateway": {"10.251.0.1"}, "iprange": {"10.251.0.0/25"},
	"ipaddress": {"10.251.0.9"}, "ipv4address": {"10.251.0.9"}, "macaddress": {"02:42:ac:11:00:09"}, "serveraddress": {"127.0.0.1:1"}, "ps_args": {"aux", "-o pid", "-o"},
	"workingdir": {"/", "/etc", "/etc/passwd"}, "user": {"0", "app", "nobody:x", "1:1:1"}, "env": {"A=b"}, "test": {"CMD", "true", "NONE"}, "stopsignal": {"TERM"},
	"scope": {"local", "swarm"}, "names": {image}, "runtime": {"runc", "none"}, "hostname": {"h"}, "links": {web + ":a"}, "volumesfrom": {web}, "aliases": {"al"},
	"capadd": {"NET_ADMIN", "ALL"}, "capdrop": {"ALL"}, "securityopt": {"no-new-privileges", "seccomp=unconfined"}, "restartpolicy.name": {"no", "always"},
	"h": {"24"}, "w": {"80"}, "t": {"0", "1"}, "stream": {"0"}, "follow": {"0"}, "stdout": {"1"}, "stderr": {"1"}, "force": {"1"}, "all": {"1"}, "one-shot": {"1"},
}

// params are the query parameters of all operations.
var params = []string{
	"all", "size", "limit", "filters", "name", "platform", "path", "since", "until", "tail", "follow", "stdout", "stderr", "stdin", "logs", "stream", "t",
	"signal", "h", "w", "force", "v", "link", "condition", "detachKeys", "repo", "tag", "fromImage", "fromSrc", "changes", "message", "author", "comment",
	"pause", "names", "quiet", "noprune", "verbose", "type", "one-shot", "timestamps", "details", "ps_args", "manifests", "scope", "container",
	"shared-size", "noOverwriteDirNonDir", "copyUIDGID", "platforms", "digests", "none",
}

// keep are fields and parameters for which a wrong value could affect more than
// the daemon under test. They get only entries of values.
var keep = map[string]bool{
	"source": true, "binds": true, "pathonhost": true, "device": true, "driveropts": true, "cgroupparent": true, "binary": true,
	"sysctls": true, "privileged": true, "utsmode": true, "usernsmode": true, "oomscoreadj": true,
}

func (c *choices) text(name string) string {
	name = strings.ToLower(name)
	known := values[name]
	if keep[name] && len(known) == 0 {
		return ""
	}
	if len(known) > 0 && (keep[name] || !c.oneIn(4)) {
		return pick(c, known...)
	}
	return pick(c, hostile...)
}

func (c *choices) query(operation string) string {
	q := url.Values{}
	for range c.of(5) {
		p := pick(c, params...)
		q.Add(p, c.text(p))
	}
	// Parameters that operations require.
	for op, need := range map[string][]string{
		"archive": {"path"}, "/commit": {"container"}, "/logs": {"stdout"}, "/resize": {"h", "w"}, "/rename": {"name"}, "/tag": {"repo"},
		"/images/create": {"fromImage"}, "/images/get": {"names"},
	} {
		for _, p := range need {
			if strings.HasSuffix(operation, op) && !c.oneIn(6) && !q.Has(p) {
				q.Set(p, c.text(p))
			}
		}
	}
	s := q.Encode()
	if c.oneIn(20) {
		s += pick(c, "&%zz", "&;", "&a=%", "&=&&", "#x")
	}
	return s
}

// object names an object of the kind that the operation refers to.
func (c *choices) object(operation, exec string) string {
	if c.oneIn(5) {
		return pick(c, hostile...)
	}
	switch {
	case strings.Contains(operation, " /containers/"):
		return pick(c, web, stopped, "fuzz1", "fuzz2", "none", "/"+web)
	case strings.Contains(operation, " /images/"):
		return pick(c, image, "busybox", "fuzz", "fuzz:t1", "127.0.0.1:1/none", "none")
	case strings.Contains(operation, " /networks/"):
		return pick(c, netw, "bridge", "host", "none", "fuzz1", "missing")
	case strings.Contains(operation, " /volumes/"):
		return pick(c, vol, "fuzz1", "none")
	case strings.Contains(operation, " /exec/"):
		return pick(c, exec, exec, "none")
	}
	return "none"
}

// body makes JSON of a type, or nearly valid JSON.
func (c *choices) body(t reflect.Type, raw []byte) []byte {
	if c.oneIn(8) && t != reflect.TypeFor[badBinary]() {
		return raw
	}
	b, err := json.Marshal(c.value(t, "", 0))
	if err != nil {
		return raw
	}
	if t == reflect.TypeFor[badBinary]() {
		return b // complete, so that the binary is included
	}
	switch c.of(24) {
	case 20:
		return b[:len(b)*c.of(256)/256]
	case 21:
		return append(b, pick(c, "x", "{}", " ", "\x00", "]")...)
	case 22: // every key twice
		if len(b) > 2 && b[0] == '{' {
			return append(append(b[:len(b)-1:len(b)-1], ','), b[1:]...)
		}
	case 23:
		return append(append([]byte(`{"Labels":`), strings.Repeat(`{"a":`, 20000)...), '1')
	}
	return b
}

var unset = reflect.TypeFor[json.Unmarshaler]()

// value makes a value that a field of type t decodes in most cases.
func (c *choices) value(t reflect.Type, name string, depth int) any {
	lower := strings.ToLower(name)
	if !keep[lower] && name != "wait" && c.oneIn(40) {
		return pick[any](c, nil, 1, -1, 1.5, "x", true, []any{1}, map[string]any{"a": 1}, math.MaxInt64, "\x00")
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if depth > 6 {
		return nil
	}
	switch t.Kind() {
	case reflect.Bool:
		return !keep[lower] && c.oneIn(3)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float64:
		if keep[lower] {
			return 0
		}
		return pick[any](c, 0, 1, 100, -1, 64<<20, 4096, math.MaxInt32, int64(math.MaxInt64), int64(math.MinInt64), 1e300)
	case reflect.String:
		return c.text(name)
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return c.text(name)
		}
		list := []any{}
		for range c.of(3) {
			list = append(list, c.value(t.Elem(), name, depth+1))
		}
		return list
	case reflect.Map:
		m := map[string]any{}
		if keep[lower] {
			return m
		}
		for range c.of(3) {
			key := c.text(name)
			if t.Elem().Kind() != reflect.String || c.oneIn(2) {
				key = pick(c, key, netw, "80/tcp", "/data", "a", "nofile")
			}
			m[key] = c.value(t.Elem(), name, depth+1)
		}
		return m
	case reflect.Struct:
		if t.PkgPath() == "net/netip" || t.PkgPath() == "time" {
			return c.text(name)
		}
		m := map[string]any{}
		c.fields(m, t, depth)
		return m
	}
	return c.text(name)
}

func (c *choices) fields(m map[string]any, t reflect.Type, depth int) {
	for i := range t.NumField() {
		f := t.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || tag == "-" {
			continue
		}
		if f.Anonymous && tag == "" {
			inner := f.Type
			if inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			if inner.Kind() == reflect.Struct && !f.Type.Implements(unset) {
				c.fields(m, inner, depth)
				continue
			}
		}
		if tag == "" {
			tag = f.Name
		}
		switch tag {
		case "binary": // never left out, because the daemon would use its own binary
		case "Image", "Name", "Cmd", "Container":
			if c.oneIn(10) {
				continue
			}
		case "HostConfig", "NetworkingConfig", "IPAM", "EndpointsConfig":
			if !c.oneIn(2) {
				continue
			}
		default:
			if !c.oneIn(12) {
				continue
			}
		}
		if tag == "Cmd" && !c.oneIn(4) {
			m[tag] = []string{"sleep", strconv.Itoa(c.of(100))}
			continue
		}
		m[tag] = c.value(f.Type, tag, depth+1)
	}
}
