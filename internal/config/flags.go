// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"strings"
)

// Flags is a parsed command line, not yet merged with a file.
type Flags struct {
	Help     bool
	Version  bool
	Validate bool // check the configuration and exit
	Takeover bool // take over from the running daemon, if there is one

	given []given
	set   map[*Option]any // pointers to the values that were given
}

type given struct {
	option *Option
	arg    string
}

// ParseFlags parses arguments, without the program's name, in GNU style:
// --flag=value, --flag value, -f value, -fvalue, and for bools --flag or
// --flag=false.
func ParseFlags(args []string) (*Flags, error) {
	f := &Flags{set: map[*Option]any{}}
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "--":
			if len(args) > 0 {
				return nil, noArguments(args[0])
			}
		case strings.HasPrefix(arg, "--"):
			name, value, has := strings.Cut(arg[2:], "=")
			rest, err := f.long(name, value, has, args)
			if err != nil {
				return nil, err
			}
			args = rest
		case strings.HasPrefix(arg, "-") && len(arg) > 1:
			value := arg[2:]
			has := value != ""
			value = strings.TrimPrefix(value, "=")
			rest, err := f.short(arg[1:2], value, has, args)
			if err != nil {
				return nil, err
			}
			args = rest
		default:
			return nil, noArguments(arg)
		}
	}
	return f, nil
}

func noArguments(arg string) error {
	return fmt.Errorf("holdfastd accepts no arguments, only flags: %q", arg)
}

func (f *Flags) long(name, value string, has bool, rest []string) ([]string, error) {
	switch name {
	case "help":
		return rest, meta(&f.Help, name, value, has)
	case "version":
		return rest, meta(&f.Version, name, value, has)
	case "validate":
		return rest, meta(&f.Validate, name, value, has)
	case "takeover":
		return rest, meta(&f.Takeover, name, value, has)
	}
	for i := range table {
		if o := &table[i]; o.Flag == name && name != "" {
			return f.take(o, "--"+name, value, has, rest)
		}
	}
	return nil, fmt.Errorf("unknown flag: --%s", name)
}

func (f *Flags) short(name, value string, has bool, rest []string) ([]string, error) {
	switch name {
	case "h":
		return rest, meta(&f.Help, name, value, has)
	case "v":
		return rest, meta(&f.Version, name, value, has)
	}
	for i := range table {
		if o := &table[i]; o.Short == name {
			return f.take(o, "-"+name, value, has, rest)
		}
	}
	return nil, fmt.Errorf("unknown shorthand flag: '%s' in -%s", name, name)
}

func meta(p *bool, name, value string, has bool) error {
	if !has {
		value = "true"
	}
	if setText(Bool, p, value) != nil {
		return fmt.Errorf("invalid argument %q for flag %q: want true or false", value, name)
	}
	return nil
}

func (f *Flags) take(o *Option, as, value string, has bool, rest []string) ([]string, error) {
	if !has {
		switch {
		case o.Kind == Bool:
			value = "true"
		case len(rest) == 0:
			return nil, fmt.Errorf("flag needs an argument: %s", as)
		default:
			value, rest = rest[0], rest[1:]
		}
	}
	p, again := f.set[o]
	if !again {
		p = newPointer(o.Kind)
		f.set[o] = p
	}
	if err := setText(o.Kind, p, value); err != nil {
		return nil, fmt.Errorf("invalid argument %q for %q flag: %w", value, as, err)
	}
	f.given = append(f.given, given{o, value})
	return rest, nil
}

// apply sets the given flags in c.
func (f *Flags) apply(c *Config) error {
	for _, g := range f.given {
		// Each occurrence is applied in order, so that lists accumulate and otherwise
		// the last one wins.
		if err := setText(g.option.Kind, c.pointer(g.option), g.arg); err != nil {
			return err
		}
		c.given[g.option.name()] = true
	}
	return nil
}

// Usage returns the text of --help.
func Usage() string {
	var b strings.Builder
	b.WriteString("Usage:  holdfastd [OPTIONS]\n\nThe daemon of Holdfast, a container engine whose containers never notice it.\n\nOptions:\n")
	type row struct{ head, text string }
	var rows []row
	width := 0
	for i := range table {
		o := &table[i]
		if o.Hidden || o.Flag == "" {
			continue
		}
		head := "      --" + o.Flag
		if o.Short != "" {
			head = "  -" + o.Short + ", --" + o.Flag
		}
		if t := typeName[o.Kind]; t != "" {
			head += " " + t
		}
		usage := o.Usage
		switch {
		case o.Kind == Bool && o.Default == "true":
			usage += " (default true)"
		case o.Kind == String && o.Default != "":
			usage += fmt.Sprintf(" (default %q)", o.Default)
		case o.Kind != Bool && o.Default != "":
			usage += " (default " + o.Default + ")"
		}
		if o.Support == Refused {
			usage += " (not in this release)"
		}
		rows = append(rows, row{head, usage})
		width = max(width, len(head))
	}
	rows = append(rows,
		row{"      --help", "Print usage"},
		row{"      --takeover", "Take over from the daemon that runs on the same roots, without a pause for clients"},
		row{"      --validate", "Validate daemon configuration and exit"},
		row{"  -v, --version", "Print version information and quit"})
	for _, r := range rows {
		fmt.Fprintf(&b, "%-*s   %s\n", width, r.head, r.text)
	}
	return b.String()
}

var typeName = map[Kind]string{
	Int: "int", String: "string", IP: "ip", Bytes: "bytes", List: "list", IPList: "list", Map: "map",
	MapMap: "mapmap", BoolMap: "map", Pools: "pool-options", Ulimits: "ulimit", Runtimes: "runtime", Object: "string",
}
