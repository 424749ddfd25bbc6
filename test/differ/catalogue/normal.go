// SPDX-License-Identifier: Apache-2.0

package catalogue

import (
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

// Known is the knowledge about one engine that is needed to normalise its
// answers.
type Known struct {
	// Text is the text of the entry. Whatever appears in it literally is
	// intended, and not normalised.
	Text string
	// IDs maps full hexadecimal IDs, without sha256:, to names for them.
	IDs map[string]string
	// Same lists texts that mean the same on both sides.
	Same []*Same
	// Names maps further words, such as directories and random names, to their
	// replacements.
	Names map[string]string
}

var (
	rfc3339  = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)`)
	printed  = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)? [+-]\d{4} [A-Z]+`)
	ago      = regexp.MustCompile(`(Less than a second|About (a|an) (minute|hour)|\d+ (second|minute|hour|day|week|month|year)s?) ago`)
	up       = regexp.MustCompile(`Up (Less than a second|About (a|an) (minute|hour)|\d+ (second|minute|hour)s?)`)
	hexWord  = regexp.MustCompile(`\b[0-9a-f]{12,64}\b`)
	address4 = regexp.MustCompile(`\b172\.(1[7-9]|2\d|3[01])\.(\d+)\.(\d+)\b`)
	address6 = regexp.MustCompile(`\bf[de][0-9a-f]{2}:[0-9a-f:]*[0-9a-f]`)
	mac      = regexp.MustCompile(`\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b`)
	veth     = regexp.MustCompile(`\bveth[0-9a-f]{6,8}\b`)
	hostPort = regexp.MustCompile(`:(3[2-9]\d{3}|[45]\d{4}|6[0-5]\d{3})\b`)
	listed   = regexp.MustCompile(`\b[A-Z][a-z]{2} +\d{1,2} \d\d:\d\d\b`)
	lasted   = regexp.MustCompile(`execDuration=\d+`)
)

// fixed are times that are the same in every run.
var fixed = map[string]bool{
	"0001-01-01T00:00:00Z": true, // the zero time
	"2024-01-02T03:04:05Z": true, // the time of the images that tests make
}

// Line normalises a line of text.
func (k *Known) Line(s string) string {
	if len(k.Names) > 0 {
		names := make([]string, 0, len(k.Names))
		for n := range k.Names {
			names = append(names, n)
		}
		sort.Slice(names, func(i, j int) bool { return len(names[i]) > len(names[j]) })
		for _, n := range names {
			s = strings.ReplaceAll(s, n, k.Names[n])
		}
	}
	unless := func(re *regexp.Regexp, instead func(string) string) {
		s = re.ReplaceAllStringFunc(s, func(m string) string {
			if strings.Contains(k.Text, m) {
				return m
			}
			return instead(m)
		})
	}
	to := func(v string) func(string) string { return func(string) string { return v } }
	unless(rfc3339, func(m string) string {
		if fixed[m] {
			return m
		}
		return "<time>"
	})
	unless(printed, func(m string) string {
		if strings.HasPrefix(m, "0001-") {
			return m
		}
		return "<time>"
	})
	unless(ago, to("<time> ago"))
	unless(up, to("Up <time>"))
	unless(lasted, to("execDuration=<n>"))
	unless(mac, to("<mac>"))
	unless(hexWord, k.id)
	unless(veth, to("<veth>"))
	unless(address4, func(m string) string {
		p := strings.Split(m, ".")
		net := p[1]
		if net != "17" {
			net = "<net>"
		}
		last := p[3]
		if last != "0" && last != "1" && last != "255" {
			last = "<host>"
		}
		if net == "17" && p[2] != "0" && p[2]+last != "255255" {
			p[2], last = "0", "<host>" // the default network is a /16
		}
		return "172." + net + "." + p[2] + "." + last
	})
	unless(address6, func(m string) string {
		if len(m) < 8 {
			return m
		}
		return "<ipv6>"
	})
	unless(hostPort, to(":<port>"))
	unless(listed, to("<date>"))
	for _, same := range k.Same {
		s = same.Text.ReplaceAllString(s, same.As)
	}
	return s
}

// id returns the replacement for a hexadecimal word.
func (k *Known) id(word string) string {
	if name, ok := k.IDs[word]; ok {
		return "<" + name + ">"
	}
	for id, name := range k.IDs {
		if strings.HasPrefix(id, word) {
			return fmt.Sprintf("<%s:%d>", name, len(word))
		}
	}
	// Without a letter it is a number and not an ID.
	if len(word) != 64 && !strings.ContainsAny(word, "abcdef") {
		return word
	}
	if len(word) != 12 && len(word) != 25 && len(word) != 32 && len(word) != 40 && len(word) != 64 {
		return word
	}
	return fmt.Sprintf("<%d hex>", len(word))
}

// Flat is an answer in lines. For JSON there is one for each value, with its
// path.
type Flat struct {
	JSON  bool
	Lines []string // of text
	Paths []string // of JSON, sorted
	Value map[string]string
}

// Flatten normalises an answer. JSON, also several values in sequence, is split
// into its values.
func (k *Known) Flatten(s string) Flat {
	trimmed := strings.TrimSpace(s)
	if strings.HasPrefix(trimmed, "{") || strings.HasPrefix(trimmed, "[") {
		if f, ok := k.flatJSON(trimmed); ok {
			return f
		}
	}
	s = k.Line(s)
	// The width of columns depends on their content, so squeeze the spaces.
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.Contains(l, "   ") {
			lines[i] = columns.ReplaceAllString(l, "  ")
		}
	}
	return Flat{Lines: lines}
}

var columns = regexp.MustCompile(` {2,}`)

func (k *Known) flatJSON(s string) (Flat, bool) {
	f := Flat{JSON: true, Value: map[string]string{}}
	dec := json.NewDecoder(strings.NewReader(s))
	dec.UseNumber()
	var values []any
	for {
		var v any
		if err := dec.Decode(&v); err == io.EOF {
			break
		} else if err != nil {
			return f, false
		}
		values = append(values, v)
	}
	if len(values) == 1 {
		k.walk(&f, "", "", values[0])
	} else {
		for i, v := range values {
			k.walk(&f, fmt.Sprintf("{%d}", i), "", v)
		}
	}
	for p := range f.Value {
		f.Paths = append(f.Paths, p)
	}
	sort.Strings(f.Paths)
	return f, true
}

// counted are fields whose numbers depend on the time or place of a run.
var counted = map[string]bool{
	"Created": true, "time": true, "timeNano": true, "Pid": true, "PID": true, "PublicPort": true, "StartedAt": true,
}

// sets are lists without an order. The value is the key by which their elements
// are sorted; if it is empty, the elements themselves are.
var sets = map[string]string{"Mounts": "Destination", "Binds": "", "ContainersDeleted": "", "VolumesDeleted": "", "NetworksDeleted": "", "Env": ""}

func order(v any, by string) string {
	if m, ok := v.(map[string]any); ok {
		v = m[by]
	}
	return fmt.Sprint(v)
}

func (k *Known) walk(f *Flat, at, key string, v any) {
	switch v := v.(type) {
	case map[string]any:
		if len(v) == 0 {
			f.Value[at] = "{}"
		}
		for name, x := range v {
			k.walk(f, at+"."+k.Line(name), name, x)
		}
	case []any:
		by, set := sets[key]
		if len(v) > 0 {
			if m, ok := v[0].(map[string]any); ok && m["Kind"] != nil && m["Path"] != nil {
				by, set = "Path", true
			} else if ok && m["Scope"] != nil && m["Name"] != nil {
				by, set = "Name", true
			} else if ok && m["RepoTags"] != nil { // images of the same second, or from one archive
				by, set = "RepoTags", true
			}
		}
		if set {
			sort.SliceStable(v, func(i, j int) bool { return k.Line(order(v[i], by)) < k.Line(order(v[j], by)) })
		}
		if len(v) == 0 {
			f.Value[at] = "[]"
		}
		for i, x := range v {
			k.walk(f, fmt.Sprintf("%s[%d]", at, i), key, x)
		}
	case string:
		if key == "execDuration" {
			v = "<n>"
		}
		if key == "HostPort" && !strings.Contains(k.Text, v) {
			if n, err := strconv.Atoi(v); err == nil && n >= 32768 {
				v = "<port>"
			}
		}
		f.Value[at] = strconv.Quote(k.Line(v))
	case json.Number:
		if n, err := v.Int64(); err == nil && n != 0 && counted[key] && (key != "PublicPort" || n >= 32768) {
			f.Value[at] = "<n>"
			return
		}
		f.Value[at] = v.String()
	default:
		f.Value[at] = fmt.Sprint(v)
	}
}
