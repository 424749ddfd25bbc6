// SPDX-License-Identifier: Apache-2.0

package image

import (
	"cmp"
	"encoding/json"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"holdfast/internal/errs"
)

// applyChanges applies Dockerfile instructions to an image's config, as docker
// import and commit accept them. Variables are not replaced, because no build
// could have set them. As in a Dockerfile, a new entrypoint removes the command
// that was meant for the old one, unless a change sets the command. If the
// image has no entrypoint and no command, Docker keeps the old command.
func applyChanges(c *dockerspec.DockerOCIImageConfig, changes []string) error {
	old, commanded := c.Cmd, false
	defer func() {
		if len(c.Entrypoint) == 0 && len(c.Cmd) == 0 {
			c.Cmd = old
		}
	}()
	for _, line := range changes {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		verb, rest, _ := strings.Cut(line, " ")
		rest = strings.TrimSpace(rest)
		do, ok := instructions[strings.ToUpper(verb)]
		if !ok {
			return errs.Invalid("invalid change %q: %s is not a valid change command", line, strings.ToUpper(verb))
		}
		if rest == "" {
			return errs.Invalid("invalid change %q: %s requires at least one argument", line, strings.ToUpper(verb))
		}
		if err := do(c, rest); err != nil {
			return errs.Invalid("invalid change %q: %s", line, err)
		}
		switch strings.ToUpper(verb) {
		case "CMD":
			commanded = len(c.Cmd) > 0
		case "ENTRYPOINT":
			if !commanded {
				c.Cmd = nil
			}
		}
	}
	return nil
}

var instructions = map[string]func(*dockerspec.DockerOCIImageConfig, string) error{
	"CMD": func(c *dockerspec.DockerOCIImageConfig, s string) error {
		c.Cmd = command(c, s)
		return nil
	},
	"ENTRYPOINT": func(c *dockerspec.DockerOCIImageConfig, s string) error {
		c.Entrypoint = command(c, s)
		return nil
	},
	"ENV": func(c *dockerspec.DockerOCIImageConfig, s string) error {
		pairs, err := keyValues(s)
		for _, kv := range pairs {
			c.Env = setEnv(c.Env, kv[0], kv[1])
		}
		return err
	},
	"LABEL": func(c *dockerspec.DockerOCIImageConfig, s string) error {
		pairs, err := keyValues(s)
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		for _, kv := range pairs {
			c.Labels[kv[0]] = kv[1]
		}
		return err
	},
	"EXPOSE": func(c *dockerspec.DockerOCIImageConfig, s string) error {
		if c.ExposedPorts == nil {
			c.ExposedPorts = map[string]struct{}{}
		}
		for _, word := range strings.Fields(s) {
			ports, err := exposed(word)
			if err != nil {
				return err
			}
			for _, p := range ports {
				c.ExposedPorts[p] = struct{}{}
			}
		}
		return nil
	},
	"USER": func(c *dockerspec.DockerOCIImageConfig, s string) error {
		c.User = s
		return nil
	},
	"WORKDIR": func(c *dockerspec.DockerOCIImageConfig, s string) error {
		if path.IsAbs(s) {
			c.WorkingDir = path.Clean(s)
		} else {
			c.WorkingDir = path.Join("/", c.WorkingDir, s)
		}
		return nil
	},
	"VOLUME": func(c *dockerspec.DockerOCIImageConfig, s string) error {
		if c.Volumes == nil {
			c.Volumes = map[string]struct{}{}
		}
		list, ok := jsonList(s)
		if !ok {
			list = strings.Fields(s)
		}
		for _, v := range list {
			if strings.TrimSpace(v) == "" {
				return fmt.Errorf("VOLUME specified can not be an empty string")
			}
			c.Volumes[v] = struct{}{}
		}
		return nil
	},
	"STOPSIGNAL": func(c *dockerspec.DockerOCIImageConfig, s string) error {
		c.StopSignal = s
		return nil
	},
	"SHELL": func(c *dockerspec.DockerOCIImageConfig, s string) error {
		list, ok := jsonList(s)
		if !ok || len(list) == 0 {
			return fmt.Errorf("SHELL requires the arguments to be in JSON form")
		}
		c.Shell = list
		return nil
	},
	"ONBUILD": func(c *dockerspec.DockerOCIImageConfig, s string) error {
		switch strings.ToUpper(strings.Fields(s)[0]) {
		case "ONBUILD":
			return fmt.Errorf("chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
		case "FROM", "MAINTAINER":
			return fmt.Errorf("%s isn't allowed as an ONBUILD trigger", strings.Fields(s)[0])
		}
		c.OnBuild = append(c.OnBuild, s)
		return nil
	},
	"HEALTHCHECK": healthcheck,
}

// jsonList reads the exec form of an instruction.
func jsonList(s string) ([]string, bool) {
	if !strings.HasPrefix(s, "[") {
		return nil, false
	}
	var list []string
	if json.Unmarshal([]byte(s), &list) != nil {
		return nil, false
	}
	return list, true
}

// command reads an instruction in exec or shell form. The shell form runs in
// the image's shell.
func command(c *dockerspec.DockerOCIImageConfig, s string) []string {
	if list, ok := jsonList(s); ok {
		return list
	}
	shell := c.Shell
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	return append(append([]string(nil), shell...), s)
}

func setEnv(env []string, key, value string) []string {
	for i, kv := range env {
		if k, _, _ := strings.Cut(kv, "="); k == key {
			env[i] = key + "=" + value
			return env
		}
	}
	return append(env, key+"="+value)
}

// keyValues reads "key=value key2='a b'", or the old form "key rest of the
// line".
func keyValues(s string) ([][2]string, error) {
	words, err := splitWords(s)
	if err != nil {
		return nil, err
	}
	if len(words) > 0 && !strings.Contains(words[0], "=") {
		key, value, ok := strings.Cut(s, " ")
		if !ok {
			return nil, fmt.Errorf("%q must have a value", key)
		}
		return [][2]string{{key, strings.TrimSpace(value)}}, nil
	}
	var out [][2]string
	for _, w := range words {
		key, value, ok := strings.Cut(w, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("can't find = in %q: must be of the form name=value", w)
		}
		out = append(out, [2]string{key, value})
	}
	return out, nil
}

// splitWords splits at blanks outside quotes, and removes quotes and
// backslashes as a Dockerfile does.
func splitWords(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	in, quote := false, rune(0)
	escaped := false
	for _, r := range s {
		switch {
		case escaped:
			if quote == '"' && r != '"' && r != '\\' {
				word.WriteByte('\\')
			}
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, in = true, true
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				word.WriteRune(r)
			}
		case r == '"' || r == '\'':
			quote, in = r, true
		case r == ' ' || r == '\t':
			if in {
				words = append(words, word.String())
				word.Reset()
				in = false
			}
		default:
			word.WriteRune(r)
			in = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("unexpected end of statement while looking for matching %c", quote)
	}
	if escaped {
		word.WriteByte('\\')
	}
	if in {
		words = append(words, word.String())
	}
	return words, nil
}

// exposed reads port[-end][/proto].
func exposed(word string) ([]string, error) {
	ports, proto, given := strings.Cut(word, "/")
	if !given {
		proto = "tcp"
	}
	switch proto = strings.ToLower(proto); proto {
	case "tcp", "udp", "sctp":
	default:
		return nil, fmt.Errorf("invalid proto: %s", proto)
	}
	first, last, ranged := strings.Cut(ports, "-")
	if !ranged {
		last = first
	}
	from, err := strconv.ParseUint(first, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("invalid containerPort: %s", ports)
	}
	to, err := strconv.ParseUint(last, 10, 16)
	if err != nil || to < from {
		return nil, fmt.Errorf("invalid containerPort: %s", ports)
	}
	var out []string
	for p := from; p <= to; p++ {
		out = append(out, fmt.Sprintf("%d/%s", p, proto))
	}
	return out, nil
}

// healthcheck sets the new health check. Values that the instruction does not
// give are kept from the old one, as docker commit does.
func healthcheck(c *dockerspec.DockerOCIImageConfig, s string) error {
	h := &dockerspec.HealthcheckConfig{}
	for strings.HasPrefix(s, "--") {
		flag, rest, _ := strings.Cut(s, " ")
		s = strings.TrimSpace(rest)
		name, value, ok := strings.Cut(strings.TrimPrefix(flag, "--"), "=")
		if !ok {
			return fmt.Errorf("missing a value on flag: %s", name)
		}
		if name == "retries" {
			n, err := strconv.Atoi(value)
			if err != nil || n < 0 {
				return fmt.Errorf("--retries must be a number, 0 or more (not %q)", value)
			}
			h.Retries = n
			continue
		}
		into := map[string]*time.Duration{
			"interval": &h.Interval, "timeout": &h.Timeout,
			"start-period": &h.StartPeriod, "start-interval": &h.StartInterval,
		}[name]
		if into == nil {
			return fmt.Errorf("unknown flag: %s", name)
		}
		d, err := time.ParseDuration(value)
		if err != nil {
			return err
		}
		if d != 0 && d < time.Millisecond {
			return fmt.Errorf("interval %q cannot be less than 1ms", name)
		}
		*into = d
	}
	verb, rest, _ := strings.Cut(s, " ")
	rest = strings.TrimSpace(rest)
	switch strings.ToUpper(verb) {
	case "NONE":
		if rest != "" {
			return fmt.Errorf("HEALTHCHECK NONE takes no arguments")
		}
		h = &dockerspec.HealthcheckConfig{Test: []string{"NONE"}}
	case "CMD":
		if rest == "" {
			return fmt.Errorf("missing command after HEALTHCHECK CMD")
		}
		if list, ok := jsonList(rest); ok {
			h.Test = append([]string{"CMD"}, list...)
		} else {
			h.Test = []string{"CMD-SHELL", rest}
		}
	default:
		return fmt.Errorf("unknown type %q in HEALTHCHECK (try CMD)", verb)
	}
	if old := c.Healthcheck; old != nil {
		h.Interval, h.Timeout = cmp.Or(h.Interval, old.Interval), cmp.Or(h.Timeout, old.Timeout)
		h.StartPeriod, h.StartInterval = cmp.Or(h.StartPeriod, old.StartPeriod), cmp.Or(h.StartInterval, old.StartInterval)
		h.Retries = cmp.Or(h.Retries, old.Retries)
	}
	c.Healthcheck = h
	return nil
}
