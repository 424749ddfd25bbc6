// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"path"
	"sort"
	"strconv"
	"strings"
)

// newPointer returns storage for an option that has no field in Config.
func newPointer(k Kind) any {
	switch k {
	case Bool:
		return new(bool)
	case Int:
		return new(int)
	case IP:
		return new(netip.Addr)
	case Bytes:
		return new(int64)
	case List:
		return new([]string)
	case IPList:
		return new([]netip.Addr)
	case Map:
		return new(map[string]string)
	case MapMap:
		return new(map[string]map[string]string)
	case BoolMap:
		return new(map[string]bool)
	case Pools:
		return new([]Pool)
	case Ulimits:
		return new(map[string]Ulimit)
	case Runtimes:
		return new(map[string]Runtime)
	default: // String, Object
		return new(string)
	}
}

// setText sets a value from a flag's argument. For kinds that may be given
// several times it adds to the existing values.
func setText(k Kind, ptr any, s string) error {
	switch p := ptr.(type) {
	case *bool:
		v, err := strconv.ParseBool(s)
		if err != nil {
			return errors.New("want true or false")
		}
		*p = v
	case *int:
		v, err := strconv.Atoi(s)
		if err != nil {
			return errors.New("want a whole number")
		}
		*p = v
	case *int64:
		v, err := ParseBytes(s)
		if err != nil {
			return err
		}
		*p = v
	case *string:
		if k == Object {
			v, err := objectFromCSV(s)
			if err != nil {
				return err
			}
			s = v
		}
		*p = s
	case *netip.Addr:
		v, err := parseIP(s)
		if err != nil {
			return err
		}
		*p = v
	case *[]string:
		*p = append(*p, s)
	case *[]netip.Addr:
		for part := range strings.SplitSeq(s, ",") {
			v, err := parseIP(strings.TrimSpace(part))
			if err != nil {
				return err
			}
			*p = append(*p, v)
		}
	case *map[string]string:
		key, v, ok := strings.Cut(s, "=")
		if !ok || key == "" {
			return errors.New("want key=value")
		}
		put(p, key, v)
	case *map[string]map[string]string:
		outer, rest, ok := strings.Cut(s, "=")
		key, v, ok2 := strings.Cut(rest, "=")
		if !ok || !ok2 || outer == "" || key == "" {
			return errors.New("want driver=key=value")
		}
		inner := map[string]string{}
		for ik, iv := range (*p)[outer] {
			inner[ik] = iv
		}
		inner[key] = v
		put(p, outer, inner)
	case *map[string]bool:
		key, v, ok := strings.Cut(s, "=")
		on := true
		if ok {
			var err error
			if on, err = strconv.ParseBool(v); err != nil {
				return errors.New("want name, name=true or name=false")
			}
		}
		if key == "" {
			return errors.New("want name, name=true or name=false")
		}
		put(p, key, on)
	case *[]Pool:
		v, err := parsePool(s)
		if err != nil {
			return err
		}
		*p = append(*p, v)
	case *map[string]Ulimit:
		v, err := parseUlimit(s)
		if err != nil {
			return err
		}
		put(p, v.Name, v)
	case *map[string]Runtime:
		name, file, ok := strings.Cut(s, "=")
		if !ok || name == "" || file == "" {
			return errors.New("want name=path")
		}
		if _, twice := (*p)[name]; twice {
			return fmt.Errorf("runtime '%s' was already registered", name)
		}
		put(p, name, Runtime{Path: file})
	}
	return nil
}

func put[V any](m *map[string]V, k string, v V) {
	if *m == nil {
		*m = map[string]V{}
	}
	(*m)[k] = v
}

// setJSON sets a value from daemon.json.
func setJSON(k Kind, ptr any, raw json.RawMessage) error {
	if string(raw) == "null" {
		return nil
	}
	switch p := ptr.(type) {
	case *bool:
		return plain(raw, p, "true or false")
	case *int:
		return plain(raw, p, "a whole number")
	case *int64: // Bytes: a number of bytes, or text with a unit
		if len(raw) > 0 && raw[0] != '"' {
			return plain(raw, p, "a number of bytes, or a size such as \"64M\"")
		}
		var s string
		if err := plain(raw, &s, "a size such as \"64M\""); err != nil {
			return err
		}
		if s == "" {
			return nil
		}
		return setText(k, p, s)
	case *string:
		if k == Object {
			var m map[string]any
			if err := plain(raw, &m, "an object"); err != nil {
				return err
			}
			if len(m) > 0 {
				b, _ := json.Marshal(m)
				*p = string(b)
			}
			return nil
		}
		return plain(raw, p, "text in quotes")
	case *netip.Addr:
		var s string
		if err := plain(raw, &s, "an IP address in quotes"); err != nil || s == "" {
			return err
		}
		return setText(k, p, s)
	case *[]string:
		return plain(raw, p, "a list of texts")
	case *[]netip.Addr:
		var list []string
		if len(raw) > 0 && raw[0] == '"' {
			list = make([]string, 1)
			if err := plain(raw, &list[0], "an IP address in quotes"); err != nil || list[0] == "" {
				return err
			}
		} else if err := plain(raw, &list, "a list of IP addresses"); err != nil {
			return err
		}
		for _, s := range list {
			if err := setText(k, p, s); err != nil {
				return err
			}
		}
	case *map[string]string:
		return plain(raw, p, "an object whose values are texts in quotes")
	case *map[string]map[string]string:
		return plain(raw, p, "an object of objects whose values are texts in quotes")
	case *map[string]bool:
		return plain(raw, p, "an object whose values are true or false")
	case *[]Pool:
		var list []struct {
			Base string
			Size int
		}
		if err := plain(raw, &list, `a list such as [{"base": "172.30.0.0/16", "size": 24}]`); err != nil {
			return err
		}
		for _, e := range list {
			pool, err := newPool(e.Base, e.Size)
			if err != nil {
				return err
			}
			*p = append(*p, pool)
		}
	case *map[string]Ulimit:
		var m map[string]Ulimit
		if err := plain(raw, &m, `an object such as {"nofile": {"Name": "nofile", "Soft": 1024, "Hard": 2048}}`); err != nil {
			return err
		}
		for name, u := range m {
			if u.Name == "" {
				u.Name = name
			}
			if u.Name != name {
				return fmt.Errorf("ulimit %q is called %q inside: give it one name", name, u.Name)
			}
			if err := checkUlimit(u); err != nil {
				return err
			}
			put(p, name, u)
		}
	case *map[string]Runtime:
		return runtimesFromJSON(raw, p)
	}
	return nil
}

// plain decodes raw. If that fails, the error says what was wanted.
func plain(raw json.RawMessage, p any, want string) error {
	if err := json.Unmarshal(raw, p); err != nil {
		return fmt.Errorf("want %s, not %s", want, short(raw))
	}
	return nil
}

func short(raw json.RawMessage) string {
	s := strings.Join(strings.Fields(string(raw)), " ")
	if len(s) > 60 {
		s = s[:57] + "..."
	}
	return s
}

// runtimesFromJSON parses what Docker's file may have for a runtime. Holdfast
// runs a runtime as a command. So of containerd's shims it only accepts the one
// that is an alias of such a command.
func runtimesFromJSON(raw json.RawMessage, into *map[string]Runtime) error {
	var m map[string]struct {
		Path    string
		Args    []string `json:"runtimeArgs"`
		Type    string   `json:"runtimeType"`
		Options map[string]any
	}
	if err := plain(raw, &m, `an object such as {"crun": {"path": "/usr/bin/crun"}}`); err != nil {
		return err
	}
	for name, r := range m {
		if r.Type != "" && r.Path != "" {
			return fmt.Errorf("runtime %q: cannot use both path and runtimeType", name)
		}
		if r.Type != "" {
			if r.Type != ShimRuntime {
				return fmt.Errorf("runtime %q: runtimeType %q is a shim of containerd, which is not used here: give the path of an OCI runtime", name, r.Type)
			}
			r.Path = StockRuntime
			for opt, v := range r.Options {
				binary, isText := v.(string)
				if opt != "BinaryName" || !isText || binary == "" {
					return fmt.Errorf("runtime %q: option %q is not known: BinaryName is, or give path and runtimeArgs", name, opt)
				}
				r.Path = binary
			}
		} else if len(r.Options) > 0 {
			return fmt.Errorf("runtime %q: options need a runtimeType: give runtimeArgs", name)
		}
		put(into, name, Runtime{Path: r.Path, Args: r.Args})
	}
	return nil
}

// text formats a flag's value as dockerd does in its message about conflicts.
func text(ptr any) string {
	switch p := ptr.(type) {
	case *bool:
		return strconv.FormatBool(*p)
	case *int:
		return strconv.Itoa(*p)
	case *int64:
		return FormatBytes(*p)
	case *string:
		return *p
	case *netip.Addr:
		if !p.IsValid() {
			return ""
		}
		return p.String()
	case *[]string:
		return fmt.Sprint(*p)
	case *[]netip.Addr:
		return fmt.Sprint(*p)
	case *map[string]string:
		return fmt.Sprint(*p)
	case *map[string]map[string]string:
		return fmt.Sprint(*p)
	case *map[string]bool:
		return fmt.Sprint(*p)
	case *[]Pool:
		out := make([]string, 0, len(*p))
		for _, pool := range *p {
			out = append(out, fmt.Sprintf("{%s %d}", pool.Base, pool.Size))
		}
		return fmt.Sprint(out)
	case *map[string]Ulimit:
		var out []string
		for _, name := range sorted(*p) {
			u := (*p)[name]
			out = append(out, fmt.Sprintf("%s=%d:%d", u.Name, u.Soft, u.Hard))
		}
		return fmt.Sprint(out)
	case *map[string]Runtime:
		return fmt.Sprint(sorted(*p))
	}
	return ""
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// ParseBytes parses a size as Docker does: a number, optionally with a fraction,
// and optionally a unit b, k, m, g, t or p, with or without "b" or "ib" after it.
// All units are powers of 1024.
func ParseBytes(s string) (int64, error) {
	bad := fmt.Errorf("invalid size: '%s': want a number with an optional unit b, k, m, g, t or p", s)
	num := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
	unit := strings.ToLower(strings.TrimSpace(s[len(num):]))
	n, err := strconv.ParseFloat(num, 64)
	if err != nil || n < 0 || math.IsInf(n, 0) || math.IsNaN(n) {
		return 0, bad
	}
	scale := 1.0
	if unit != "" && unit != "b" {
		i := strings.IndexByte("kmgtp", unit[0])
		if i < 0 || (unit[1:] != "" && unit[1:] != "b" && unit[1:] != "ib") {
			return 0, bad
		}
		scale = math.Pow(1024, float64(i+1))
	}
	if n*scale >= math.MaxInt64 {
		return 0, fmt.Errorf("invalid size: '%s': larger than can be counted", s)
	}
	return int64(n * scale), nil
}

// FormatBytes formats a size with a binary unit.
func FormatBytes(n int64) string {
	f, units := float64(n), []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i := 0
	for f >= 1024 && i < len(units)-1 {
		f /= 1024
		i++
	}
	return strconv.FormatFloat(f, 'g', 4, 64) + units[i]
}

func parseIP(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, fmt.Errorf("%s is not an ip address", s)
	}
	return a.Unmap(), nil
}

// parsePool parses base=CIDR,size=BITS.
func parsePool(s string) (Pool, error) {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return Pool{}, errors.New("want base=172.30.0.0/16,size=24")
	}
	var base string
	size := 0
	for _, f := range fields {
		key, v, ok := strings.Cut(f, "=")
		if !ok {
			return Pool{}, fmt.Errorf("invalid field '%s' must be a key=value pair", f)
		}
		switch strings.ToLower(key) {
		case "base":
			base = v
		case "size":
			if size, err = strconv.Atoi(v); err != nil {
				return Pool{}, fmt.Errorf("invalid size value: %q: want the length of a prefix such as 24", v)
			}
		default:
			return Pool{}, fmt.Errorf("unexpected key '%s' in '%s': want base and size", key, f)
		}
	}
	return newPool(base, size)
}

func newPool(base string, size int) (Pool, error) {
	p, err := netip.ParsePrefix(base)
	if err != nil {
		return Pool{}, fmt.Errorf("invalid base pool %q: want a network such as 172.30.0.0/16", base)
	}
	if size < p.Bits() || size > p.Addr().BitLen()-2 {
		return Pool{}, fmt.Errorf("invalid pool size %d for %s: want %d to %d", size, base, p.Bits(), p.Addr().BitLen()-2)
	}
	return Pool{Base: p.Masked(), Size: size}, nil
}

// parseUlimit parses name=soft[:hard].
func parseUlimit(s string) (Ulimit, error) {
	name, v, ok := strings.Cut(s, "=")
	if !ok {
		return Ulimit{}, fmt.Errorf("invalid ulimit argument: %s: want name=soft:hard", s)
	}
	softText, hardText, two := strings.Cut(v, ":")
	soft, err := strconv.ParseInt(softText, 10, 64)
	if err != nil {
		return Ulimit{}, fmt.Errorf("invalid ulimit argument: %s: want name=soft:hard", s)
	}
	hard := soft
	if two {
		if hard, err = strconv.ParseInt(hardText, 10, 64); err != nil {
			return Ulimit{}, fmt.Errorf("invalid ulimit argument: %s: want name=soft:hard", s)
		}
	}
	u := Ulimit{Name: name, Soft: soft, Hard: hard}
	return u, checkUlimit(u)
}

// ulimitNames are the limits of setrlimit(2) that can be set for containers.
var ulimitNames = []string{"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"}

func checkUlimit(u Ulimit) error {
	for _, n := range ulimitNames {
		if u.Name != n {
			continue
		}
		if u.Hard >= 0 && (u.Soft < 0 || u.Soft > u.Hard) {
			return fmt.Errorf("ulimit soft limit must be less than or equal to hard limit: %s=%d:%d", u.Name, u.Soft, u.Hard)
		}
		return nil
	}
	return fmt.Errorf("invalid ulimit type: %s: want one of %s", u.Name, strings.Join(ulimitNames, ", "))
}

// objectFromCSV parses key=value,… of a flag whose value in the file is an
// object.
func objectFromCSV(s string) (string, error) {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return "", errors.New("want key=value,key=value")
	}
	m := map[string]any{}
	for _, f := range fields {
		key, v, ok := strings.Cut(f, "=")
		if b, err := strconv.ParseBool(v); err == nil {
			m[key] = b
		} else if !ok {
			m[key] = true
		} else {
			m[key] = v
		}
	}
	b, err := json.Marshal(m)
	return string(b), err
}

// cleanPath requires an absolute path, because a relative one would depend on the
// daemon's working directory.
func cleanPath(what, p string) (string, error) {
	if !path.IsAbs(p) {
		return p, fmt.Errorf("invalid %s %q: want an absolute path", what, p)
	}
	return path.Clean(p), nil
}
