// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"holdfast/internal/durable"
	"holdfast/internal/network/overlay"
)

// recordSchema is the schema number of networks/<id>.json.
const recordSchema = 1

// record is a network as it is stored. It does not say what is in use: that is
// derived from the containers' sandboxes.
type record struct {
	Schema     int               `json:"schema"`
	ID         string            `json:"id"`
	Name       string            `json:"name"`
	Driver     string            `json:"driver"` // bridge, host, null, macvlan, ipvlan or overlay
	Created    time.Time         `json:"created"`
	EnableIPv4 bool              `json:"enableIPv4"`
	EnableIPv6 bool              `json:"enableIPv6"`
	Internal   bool              `json:"internal,omitempty"`
	Attachable bool              `json:"attachable,omitempty"`
	Subnets    []subnet          `json:"subnets,omitempty"`
	Bridge     *bridgeRecord     `json:"bridge,omitempty"`
	Parent     *parentRecord     `json:"parent,omitempty"`
	Options    map[string]string `json:"options,omitempty"`
	// IPAMOptions have no effect on the only IPAM driver. They are shown by
	// inspect.
	IPAMOptions map[string]string `json:"ipamOptions,omitempty"`
	// MTU is the daemon's MTU, in bytes, when the network was created, if the
	// options name none. It is zero in records of older releases and of the default
	// network: then the daemon's current MTU applies.
	MTU    int               `json:"mtu,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	// ConfigOnly: the network is only a configuration for others. ConfigFrom names
	// the configuration that this network was created with.
	ConfigOnly bool   `json:"configOnly,omitempty"`
	ConfigFrom string `json:"configFrom,omitempty"`
	// Overlay is set on networks that span the nodes of a swarm.
	Overlay *overlay.Definition `json:"overlay,omitempty"`
	// Removing: the network is being removed, and the next Restore finishes it.
	Removing bool `json:"removing,omitempty"`
}

// subnet is one of a network's subnets. There may be several of a family.
type subnet struct {
	Prefix  netip.Prefix `json:"prefix"`
	Range   netip.Prefix `json:"range,omitzero"`
	Gateway netip.Addr   `json:"gateway,omitzero"` // the containers' default route
	// Bridge is the bridge's own address, usually equal to Gateway.
	Bridge netip.Addr            `json:"bridge,omitzero"`
	Aux    map[string]netip.Addr `json:"aux,omitempty"`
}

type bridgeRecord struct {
	Name string `json:"name"`
	// Made: the engine made the bridge, so it may remove addresses from it.
	Made bool   `json:"made,omitempty"`
	MAC  string `json:"mac,omitempty"`
}

// damage is a record that does not say what its network is.
type damage struct {
	path string
	why  error
}

// loaded are the records of a data root.
type loaded struct {
	records   map[string]*record // by name
	condemned []*record          // of networks whose removal has begun
	damaged   []damage
}

// load reads all records. A file that has a newer schema or can't be read is an
// error, because its content must not be guessed. A damaged one is reported.
func load(root string) (l loaded, err error) {
	entries, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return l, fmt.Errorf("networks: %w", err)
	}
	l.records = map[string]*record{}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		path := filepath.Join(root, e.Name())
		b, err := os.ReadFile(path)
		if err != nil {
			return l, fmt.Errorf("networks: %w", err)
		}
		// Check the schema first: a record of a newer schema may not even decode.
		var top struct {
			Schema int `json:"schema"`
		}
		if err := json.Unmarshal(b, &top); err == nil && top.Schema > recordSchema {
			return l, fmt.Errorf("network record %s has schema %d, this release knows up to %d: it was written by a newer one", path, top.Schema, recordSchema)
		}
		var r record
		err = json.Unmarshal(b, &r)
		if err == nil && (r.ID == "" || r.Name == "") {
			err = errors.New("it has no id or no name")
		}
		if err != nil {
			l.damaged = append(l.damaged, damage{path, err})
			continue
		}
		if r.Removing {
			l.condemned = append(l.condemned, &r)
			continue
		}
		if other := l.records[r.Name]; other != nil {
			return l, fmt.Errorf("network records %s and %s have the same name %q", other.ID, r.ID, r.Name)
		}
		l.records[r.Name] = &r
	}
	return l, nil
}

// damagedSuffix is what a damaged record is renamed with.
const damagedSuffix = ".damaged"

// setAside renames damaged records, so that the network can be created again.
func (p *parsed) setAside(list []damage) error {
	for _, d := range list {
		aside := d.path + damagedSuffix
		if err := os.Rename(d.path, aside); err != nil {
			return fmt.Errorf("set the damaged network record aside: %w", err)
		}
		p.Log.Error("a network's record is damaged: it was set aside, and containers of the network can't start until it is created again",
			"record", d.path, "aside", aside, "error", d.why)
	}
	return nil
}

// save writes a record durably: after a crash the file is the old or the new
// version.
func save(root string, r *record) error {
	fail := func(err error) error { return fmt.Errorf("store network %s: %w", r.Name, err) }
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return fail(err)
	}
	if err := write(root, r.ID+".json", append(b, '\n')); err != nil {
		return fail(err)
	}
	return nil
}

// write writes a file in root atomically and durably. The group of the directory,
// which is that of the API's socket, may read the file.
func write(root, name string, text []byte) error {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(root, name), text, 0o640)
}

// removeTemps removes the temporary files that crashes left among the records.
func removeTemps(root string) error {
	old, err := filepath.Glob(filepath.Join(root, ".network-*")) // of earlier releases
	if err != nil {
		return err
	}
	for _, path := range old {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return durable.RemoveTemps(root)
}
