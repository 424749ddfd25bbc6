// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"reflect"
	"slices"
	"sort"
	"strings"
	"unicode/utf8"
)

// Load merges the command line with the file that it names, by the rules of
// dockerd: no option may be given in both, empty values in the file mean the
// default, and every key must be known. readFile returns a file's content.
// fs.ErrNotExist is only accepted for the default file.
//
// After an error a running daemon keeps its configuration. The message says what
// was wrong and where.
func Load(f *Flags, readFile func(name string) ([]byte, error)) (*Config, error) {
	c, err := Read(f, readFile)
	if err != nil {
		return nil, err
	}
	if err := c.Refused(); err != nil {
		return nil, err
	}
	return c, nil
}

// Refused returns the error that Load would return for a configuration from Read:
// options that can't be used. It returns nil if there are none.
func (c *Config) Refused() error {
	var refused []string
	for i := range table {
		if why := c.refused[table[i].name()]; why != "" {
			refused = append(refused, fmt.Sprintf("%s can't be used: %s", table[i].name(), why))
		}
	}
	if len(refused) == 0 {
		return nil
	}
	return errors.New(strings.Join(refused, "; "))
}

// Read is Load for inspection only: refused options are no error, but Plan
// reports them. The daemon must not run with the result.
func Read(f *Flags, readFile func(name string) ([]byte, error)) (*Config, error) {
	c, err := defaults()
	if err != nil {
		return nil, err
	}
	if err := f.apply(c); err != nil {
		return nil, err
	}
	named := c.given["config-file"]
	data, err := readFile(c.ConfigFile)
	switch {
	case err == nil:
		if err := c.file(f, data); err != nil {
			return nil, fmt.Errorf("unable to configure the Holdfast daemon with file %s: %w", c.ConfigFile, err)
		}
	case named || !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("unable to configure the Holdfast daemon with file %s: %w", c.ConfigFile, err)
	}
	if err := c.support(); err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	return c, nil
}

// defaults returns a Config with every option's default.
func defaults() (*Config, error) {
	c := &Config{other: map[string]any{}, given: map[string]bool{}}
	for i := range table {
		o := &table[i]
		p := c.pointer(o) // creates all pointers now, so that c.other is not written later
		if o.Default == "" {
			continue
		}
		if err := setText(o.Kind, p, o.Default); err != nil {
			return nil, fmt.Errorf("default of %s: %w", o.name(), err)
		}
	}
	return c, nil
}

// pointer returns where an option's value is stored.
func (c *Config) pointer(o *Option) any {
	if o.field != nil {
		return o.field(c)
	}
	p, ok := c.other[o.name()]
	if !ok {
		p = newPointer(o.Kind)
		c.other[o.name()] = p
	}
	return p
}

// directive is one key of the file, with its position for messages.
type directive struct {
	key    string
	raw    json.RawMessage
	offset int // of the value
}

func (c *Config) file(f *Flags, data []byte) error {
	text := bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if !utf8.Valid(text) {
		return errors.New("the file is not UTF-8 text")
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return nil
	}
	all, err := directives(text)
	if err != nil {
		return err
	}

	var unknown []string
	found := map[*Option]directive{}
	for _, d := range all {
		o := byKey(d.key)
		if o == nil {
			unknown = append(unknown, d.key)
			continue
		}
		if _, twice := found[o]; twice {
			if o.Alias != "" {
				return fmt.Errorf("%s and %s must not both be specified in the config file", o.Alias, o.Key)
			}
			return fmt.Errorf("%s: %s is specified twice", place(text, d.offset), d.key)
		}
		found[o] = d
	}
	if len(unknown) > 0 {
		sort.Strings(unknown)
		return fmt.Errorf("the following directives don't match any configuration option: %s", strings.Join(unknown, ", "))
	}
	if conflicts := conflicts(f, found); len(conflicts) > 0 {
		return fmt.Errorf("the following directives are specified both as a flag and in the configuration file: %s", strings.Join(conflicts, ", "))
	}
	for i := range table {
		o := &table[i]
		d, ok := found[o]
		if !ok {
			continue
		}
		c.given[o.name()] = true
		// Decode into a new value first: as in dockerd an empty value keeps the
		// default, so that dockerd's full example of a file can be used as it is. An
		// empty bool is false and not the default.
		p := newPointer(o.Kind)
		if err := setJSON(o.Kind, p, d.raw); err != nil {
			return fmt.Errorf("%s: %s: %w", place(text, d.offset), d.key, err)
		}
		v := reflect.ValueOf(p).Elem()
		if o.Kind != Bool && empty(v) {
			continue
		}
		if o.Key == "hosts" && handedOver(f, o) {
			for _, host := range *p.(*[]string) {
				if !slices.Contains(c.Hosts, host) {
					c.Hosts = append(c.Hosts[:len(c.Hosts):len(c.Hosts)], host)
				}
			}
			continue
		}
		if o.Kind == Runtimes { // runtimes may also be given in both
			into := o.field(c).(*map[string]Runtime)
			for name, r := range *p.(*map[string]Runtime) {
				if _, twice := (*into)[name]; twice {
					return fmt.Errorf("%s: runtime '%s' was already registered by --add-runtime", place(text, d.offset), name)
				}
				put(into, name, r)
			}
			continue
		}
		reflect.ValueOf(c.pointer(o)).Elem().Set(v)
	}
	return nil
}

func empty(v reflect.Value) bool {
	if k := v.Kind(); k == reflect.Slice || k == reflect.Map {
		return v.Len() == 0
	}
	return v.IsZero()
}

func byKey(key string) *Option {
	for i := range table {
		if o := &table[i]; key != "" && (o.Key == key || o.Alias == key) {
			return o
		}
	}
	return nil
}

// directives returns the keys of the file's object. As in dockerd, the keys of a
// group such as "proxies" are moved to the top level.
func directives(text []byte) ([]directive, error) {
	var probe any
	if err := json.Unmarshal(text, &probe); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			// Offset includes the byte that caused the error.
			return nil, fmt.Errorf("%s: %w", place(text, int(syntax.Offset)-1), err)
		}
		return nil, err
	}
	if _, ok := probe.(map[string]any); !ok {
		return nil, fmt.Errorf("%s: want an object such as {\"live-restore\": true}", place(text, 0))
	}
	all, err := object(text, 0)
	if err != nil {
		return nil, err
	}
	var flat []directive
	for _, d := range all {
		if !isGroup(d.key) {
			flat = append(flat, d)
			continue
		}
		if string(d.raw) == "null" {
			continue
		}
		if d.raw[0] != '{' {
			return nil, fmt.Errorf("%s: %s: want an object, not %s", place(text, d.offset), d.key, short(d.raw))
		}
		inner, err := object(d.raw, d.offset)
		if err != nil {
			return nil, err
		}
		flat = append(flat, inner...)
	}
	return flat, nil
}

func isGroup(key string) bool {
	for i := range table {
		if table[i].Parent == key && key != "" {
			return true
		}
	}
	return false
}

// object parses the members of a valid JSON object that starts at offset base of
// the file.
func object(text []byte, base int) ([]directive, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	var out []directive
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, err
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, err
		}
		out = append(out, directive{tok.(string), raw, base + int(dec.InputOffset()) - len(raw)})
	}
	return out, nil
}

// place returns the line and column of an offset, both counted from one.
func place(text []byte, offset int) string {
	offset = max(0, min(offset, len(text)))
	before := text[:offset]
	line := bytes.Count(before, []byte("\n")) + 1
	column := utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:]) + 1
	return fmt.Sprintf("line %d, column %d", line, column)
}

// conflicts returns the options that are given in both, sorted by flag and in
// dockerd's format.
func conflicts(f *Flags, found map[*Option]directive) []string {
	var options []*Option
	for o := range f.set {
		if _, both := found[o]; both && o.Kind != Runtimes && !handedOver(f, o) {
			options = append(options, o)
		}
	}
	sort.Slice(options, func(i, j int) bool { return options[i].Flag < options[j].Flag })
	var out []string
	for _, o := range options {
		d := found[o]
		var v any
		_ = json.Unmarshal(d.raw, &v) // it was validated before
		flag, file := text(f.set[o]), fmt.Sprint(v)
		if o.Parent == "proxies" {
			flag, file = MaskCredentials(flag), MaskCredentials(file)
		}
		out = append(out, fmt.Sprintf("%s: (from flag: %s, from file: %s)", d.key, flag, file))
	}
	return out
}

// handedOver reports whether the command line only has sockets of a service
// manager for an option. The service's unit sets them, so the file may add
// further addresses.
func handedOver(f *Flags, o *Option) bool {
	hosts, ok := f.set[o].(*[]string)
	return ok && o.Key == "hosts" && !slices.ContainsFunc(*hosts, func(h string) bool { return !strings.HasPrefix(h, "fd://") })
}

// MaskCredentials replaces the user and password of a URL.
func MaskCredentials(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.User == nil {
		return raw
	}
	u.User = url.UserPassword("xxxxx", "xxxxx")
	return u.String()
}

// support marks options that are given but not supported as refused, or warns
// about them. It accepts a value that requests nothing, or that describes what
// Holdfast does anyway.
func (c *Config) support() error {
	for i := range table {
		o := &table[i]
		if o.Support == Honoured || !c.given[o.name()] {
			continue
		}
		def := newPointer(o.Kind)
		if o.Default != "" {
			if err := setText(o.Kind, def, o.Default); err != nil {
				return err
			}
		}
		v := reflect.ValueOf(c.pointer(o)).Elem()
		if o.Kind != Bool && empty(v) || reflect.DeepEqual(v.Interface(), reflect.ValueOf(def).Elem().Interface()) || harmless(o, v.Interface()) {
			continue
		}
		if o.Support == Refused {
			if c.refused == nil {
				c.refused = map[string]string{}
			}
			c.refused[o.name()] = o.Reason
			continue
		}
		c.warnings = append(c.warnings, fmt.Sprintf("%s is ignored: %s", o.name(), o.Reason))
	}
	for _, name := range sorted(c.Features) {
		switch {
		case name == "containerd-snapshotter" && c.Features[name]:
		case name == "containerd-snapshotter":
			c.warnings = append(c.warnings, "feature containerd-snapshotter=false is ignored: images are always kept in containerd's store here")
		default:
			c.warnings = append(c.warnings, fmt.Sprintf("feature %s is ignored: it is not known to this release", name))
		}
	}
	return nil
}

// harmless reports whether a value of an unsupported option describes what
// Holdfast does anyway.
func harmless(o *Option, v any) bool {
	switch o.Key {
	case "firewall-backend":
		return v == "nftables"
	case "nri-opts":
		var m map[string]any
		s, _ := v.(string)
		return json.Unmarshal([]byte(s), &m) == nil && m["enable"] != true
	case "storage-opts":
		list, _ := v.([]string)
		for _, s := range list {
			if s != "overlay2.override_kernel_check=true" && s != "overlay2.override_kernel_check=1" {
				return false
			}
		}
		return true
	}
	return false
}
