// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"

	"holdfast/internal/errs"
)

// Log drivers that the shim implements.
const (
	LogDriverJSON  = "json-file"
	LogDriverLocal = "local"
	LogDriverNone  = "none"
)

// foreignLogDrivers are Docker's other log drivers, which are refused by name.
var foreignLogDrivers = []string{
	"awslogs", "etwlogs", "fluentd", "gcplogs", "gelf", "journald", "logentries", "splunk", "syslog",
}

// LogConfig is a parsed and validated log configuration.
type LogConfig struct {
	Driver   string
	MaxSize  int64 // bytes; 0 means no limit
	MaxFiles int   // including the active one
	Compress bool

	Labels, Env           []string
	LabelsRegex, EnvRegex *regexp.Regexp
	Tag                   string // a text/template that is executed with LogInfo
}

// LogInfo has the fields and methods that a tag's template may use.
type LogInfo struct {
	ContainerID        string
	ContainerName      string // with its leading slash
	ContainerImageID   string
	ContainerImageName string
	Config             *container.Config
	DaemonName         string
}

// ID is the container's short ID.
func (i LogInfo) ID() string { return short(i.ContainerID) }

// FullID is the container's ID.
func (i LogInfo) FullID() string { return i.ContainerID }

// Name is the container's name without the slash.
func (i LogInfo) Name() string { return strings.TrimPrefix(i.ContainerName, "/") }

// ImageID is the image's short ID.
func (i LogInfo) ImageID() string {
	_, hex, ok := strings.Cut(i.ContainerImageID, ":")
	if !ok {
		hex = i.ContainerImageID
	}
	return short(hex)
}

// ImageFullID is the image's ID.
func (i LogInfo) ImageFullID() string { return i.ContainerImageID }

// ImageName is the image's name as the user gave it.
func (i LogInfo) ImageName() string { return i.ContainerImageName }

func short(id string) string { return id[:min(12, len(id))] }

// ParseLog parses a log configuration. For unknown drivers and options, and for
// invalid values, it returns errdefs.ErrInvalidArgument.
func ParseLog(lc container.LogConfig) (LogConfig, error) {
	out := LogConfig{Driver: lc.Type, MaxFiles: 1}
	switch lc.Type {
	case LogDriverNone:
		return out, nil
	case "", LogDriverJSON:
		out.Driver = LogDriverJSON
	case LogDriverLocal:
		out.MaxSize, out.MaxFiles, out.Compress = 20<<20, 5, true
	default:
		if slices.Contains(foreignLogDrivers, lc.Type) {
			return out, errs.Invalid("logger: log driver '%s' is not available: use json-file, local or none", lc.Type)
		}
		return out, errs.Invalid("error looking up logging plugin %[1]s: plugin %[1]q not found", lc.Type)
	}

	bounded := out.MaxSize > 0
	compressGiven := false
	var mode string
	for _, k := range slices.Sorted(maps.Keys(lc.Config)) {
		v := lc.Config[k]
		var err error
		switch k {
		case "max-size":
			if lc.Type == LogDriverLocal || v != "-1" { // -1 means no limit, in json-file
				out.MaxSize, err = units.FromHumanSize(v)
				if err == nil && out.MaxSize <= 0 {
					err = errs.Invalid("max-size must be a positive number")
				}
				bounded = true
			}
		case "max-file":
			out.MaxFiles, err = strconv.Atoi(v)
			if err == nil && out.MaxFiles < 1 {
				err = errs.Invalid("max-file cannot be less than 1")
			}
		case "compress":
			out.Compress, err = strconv.ParseBool(v)
			compressGiven = true
		case "labels":
			out.Labels = splitKeys(v)
		case "env":
			out.Env = splitKeys(v)
		case "labels-regex":
			out.LabelsRegex, err = regexp.Compile(v)
		case "env-regex":
			out.EnvRegex, err = regexp.Compile(v)
		case "tag":
			out.Tag = v
			_, err = parseTag(v)
		case "mode":
			mode = v
			if v != string(container.LogModeBlocking) && v != string(container.LogModeNonBlock) && v != "" {
				return out, errs.Invalid("logger: logging mode not supported: %s", v)
			}
		case "max-buffer-size":
			_, err = units.RAMInBytes(v)
		default:
			return out, errs.Invalid("unknown log opt '%s' for %s log driver", k, out.Driver)
		}
		if err != nil {
			return out, errs.Invalid("error parsing option %s: %v", k, err)
		}
	}
	if _, ok := lc.Config["max-buffer-size"]; ok && mode != string(container.LogModeNonBlock) {
		return out, errs.Invalid("logger: max-buffer-size option is only supported with 'mode=%s'", container.LogModeNonBlock)
	}
	if out.Compress && (out.MaxFiles < 2 || !bounded) {
		if compressGiven {
			return out, errs.Invalid("compress cannot be true when max-file is less than 2 or max-size is not set")
		}
		out.Compress = false
	}
	return out, nil
}

func splitKeys(v string) []string {
	var keys []string
	for _, k := range strings.Split(v, ",") {
		if k = strings.TrimSpace(k); k != "" {
			keys = append(keys, k)
		}
	}
	return keys
}

// Attributes returns the extra fields of each log line: the labels and
// environment variables that the options select, and the tag.
func (c LogConfig) Attributes(info LogInfo) (map[string]string, error) {
	attrs := map[string]string{}
	take := func(have map[string]string, keys []string, re *regexp.Regexp) {
		for k, v := range have {
			if slices.Contains(keys, k) || re != nil && re.MatchString(k) {
				attrs[k] = v
			}
		}
	}
	if info.Config != nil {
		take(info.Config.Labels, c.Labels, c.LabelsRegex)
		env := map[string]string{}
		for _, kv := range info.Config.Env {
			if k, v, ok := strings.Cut(kv, "="); ok {
				env[k] = v
			}
		}
		take(env, c.Env, c.EnvRegex)
	}
	if c.Tag != "" {
		t, err := parseTag(c.Tag)
		if err != nil {
			return nil, err
		}
		var b strings.Builder
		if err := t.Execute(&b, &info); err != nil {
			return nil, errs.Invalid("log tag %q: %v", c.Tag, err)
		}
		attrs["tag"] = b.String()
	}
	if len(attrs) == 0 {
		return nil, nil
	}
	return attrs, nil
}

func parseTag(tag string) (*template.Template, error) {
	t, err := template.New("log-tag").Parse(tag)
	if err != nil {
		return nil, fmt.Errorf("log tag: %w", err)
	}
	return t, nil
}
