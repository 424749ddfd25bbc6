// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Builder is the key builder of daemon.json: Docker's options for image builds.
// Sizes are in bytes; 0 leaves the choice to BuildKit.
type Builder struct {
	// GCOff: the cache of builds is never collected.
	GCOff         bool
	ReservedSpace int64
	MaxUsedSpace  int64
	MinFreeSpace  int64
	Policy        []BuilderRule
	// HistoryAge and HistoryEntries bound the history of builds; nil is BuildKit's
	// bound.
	HistoryAge     time.Duration
	HistoryEntries *int64
	// Entitlements that a client may ask for, by BuildKit's names.
	Entitlements []string
}

// BuilderRule is one rule by which the cache is collected.
type BuilderRule struct {
	All           bool
	Filter        []string // such as "type==source.local", and of other fields
	KeepDuration  time.Duration
	ReservedSpace int64
	MaxUsedSpace  int64
	MinFreeSpace  int64
}

// builderFile is the form in the file.
type builderFile struct {
	GC struct {
		Enabled              *bool      `json:"enabled"`
		DefaultKeepStorage   sizeText   `json:"defaultKeepStorage"`
		DefaultReservedSpace sizeText   `json:"defaultReservedSpace"`
		DefaultMaxUsedSpace  sizeText   `json:"defaultMaxUsedSpace"`
		DefaultMinFreeSpace  sizeText   `json:"defaultMinFreeSpace"`
		Policy               []ruleFile `json:"policy"`
	} `json:"gc"`
	Entitlements struct {
		NetworkHost      *bool `json:"network-host"`
		SecurityInsecure *bool `json:"security-insecure"`
		Device           *bool `json:"device"`
	} `json:"entitlements"`
	History struct {
		MaxAge     string `json:"maxAge"`
		MaxEntries *int64 `json:"maxEntries"`
	} `json:"history"`
}

type ruleFile struct {
	All           bool     `json:"all"`
	KeepStorage   sizeText `json:"keepStorage"`
	ReservedSpace sizeText `json:"reservedSpace"`
	MaxUsedSpace  sizeText `json:"maxUsedSpace"`
	MinFreeSpace  sizeText `json:"minFreeSpace"`
	KeepDuration  string   `json:"keepDuration"`
	Filter        []string `json:"filter"`
}

// sizeText is a number of bytes, or text such as "10GB".
type sizeText int64

func (s *sizeText) UnmarshalJSON(raw []byte) error {
	var n int64
	if json.Unmarshal(raw, &n) == nil {
		*s = sizeText(n)
		return nil
	}
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return errors.New("want a number of bytes, or a size such as \"10GB\"")
	}
	n, err := ParseBytes(text)
	if err != nil {
		return fmt.Errorf("size %q: %w", text, err)
	}
	*s = sizeText(n)
	return nil
}

// parseBuilder reads the JSON of the key, which may be empty.
func parseBuilder(text string) (Builder, error) {
	b := Builder{Entitlements: []string{"network.host"}}
	if text == "" {
		return b, nil
	}
	var f builderFile
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return b, fmt.Errorf("invalid builder: %w", err)
	}
	b.GCOff = f.GC.Enabled != nil && !*f.GC.Enabled
	b.ReservedSpace = int64(max(f.GC.DefaultKeepStorage, f.GC.DefaultReservedSpace))
	b.MaxUsedSpace, b.MinFreeSpace = int64(f.GC.DefaultMaxUsedSpace), int64(f.GC.DefaultMinFreeSpace)
	for i, r := range f.GC.Policy {
		rule, err := r.parse()
		if err != nil {
			return b, fmt.Errorf("invalid builder: gc.policy[%d]: %w", i, err)
		}
		b.Policy = append(b.Policy, rule)
	}
	if text := f.History.MaxAge; text != "" {
		age, err := time.ParseDuration(text)
		if err != nil || age < 0 {
			return b, fmt.Errorf("invalid builder: history.maxAge %q: want a duration such as \"48h\"", text)
		}
		b.HistoryAge = age
	}
	b.HistoryEntries = f.History.MaxEntries
	if no := f.Entitlements.NetworkHost; no != nil && !*no {
		b.Entitlements = nil
	}
	if yes := f.Entitlements.SecurityInsecure; yes != nil && *yes {
		b.Entitlements = append(b.Entitlements, "security.insecure")
	}
	if yes := f.Entitlements.Device; yes != nil && *yes {
		return b, errors.New("invalid builder: entitlements.device: CDI devices are not part of this release")
	}
	return b, nil
}

func (r ruleFile) parse() (BuilderRule, error) {
	rule := BuilderRule{
		All: r.All, ReservedSpace: int64(max(r.KeepStorage, r.ReservedSpace)),
		MaxUsedSpace: int64(r.MaxUsedSpace), MinFreeSpace: int64(r.MinFreeSpace),
	}
	age := r.KeepDuration
	for _, f := range r.Filter {
		name, value, ok := strings.Cut(f, "=")
		switch value = strings.TrimPrefix(value, "="); {
		case !ok || name == "":
			return rule, fmt.Errorf("filter %q: want FIELD=VALUE", f)
		case name == "unused-for" || name == "until":
			age = value
		default:
			rule.Filter = append(rule.Filter, name+"=="+value)
		}
	}
	if age != "" {
		d, err := time.ParseDuration(age)
		if err != nil || d < 0 {
			return rule, fmt.Errorf("%q is not a duration such as \"48h\"", age)
		}
		rule.KeepDuration = d
	}
	return rule, nil
}

func checkBuilder(c *Config) (err error) {
	c.Builder, err = parseBuilder(c.builderText)
	return err
}
