// SPDX-License-Identifier: Apache-2.0

package network

import (
	"strconv"
	"strings"

	"holdfast/internal/errs"
	"holdfast/internal/network/bridge"
)

// parentRecord is the host's interface that a macvlan or ipvlan network sits on.
type parentRecord struct {
	Name string `json:"name"`
	Mode string `json:"mode"` // of the driver
	// Made: the engine made the interface. It is a VLAN of another interface, or a
	// dummy for a network without a parent.
	Made bool `json:"made,omitempty"`
}

const modePassthru = "passthru"

// modes lists the drivers' modes. The first is the default.
var modes = map[string][]string{
	driverMacvlan: {"bridge", "vepa", "private", modePassthru},
	driverIPvlan:  {"l2", "l3", "l3s"},
}

// assignParent validates the option parent. It names an interface of the host.
// With ".N" appended it names its VLAN N, which is created if it is missing.
// Without a parent the network leads nowhere, like an internal one.
func assignParent(rec *record) error {
	p := &parentRecord{Name: rec.Options[optParent], Mode: modes[rec.Driver][0]}
	option := optMacvlanMode
	if rec.Driver == driverIPvlan {
		option = optIPvlanMode
	}
	if mode := rec.Options[option]; mode != "" {
		p.Mode = ""
		for _, known := range modes[rec.Driver] {
			if mode == known {
				p.Mode = mode
			}
		}
		if p.Mode == "" {
			return errs.Invalid("invalid option %s=%s: want %s", option, mode, strings.Join(modes[rec.Driver], ", "))
		}
	}
	if err := bridge.CheckKind(rec.Driver); err != nil {
		return err
	}
	if p.Name == "" {
		p.Name, p.Made = "dm-"+rec.ID[:12], true
		rec.Internal = true
		rec.Parent = p
		return nil
	}
	if !isInterfaceName(p.Name) {
		return errs.Invalid("invalid option %s=%s: %s", optParent, p.Name, wantInterfaceName)
	}
	if p.Name == "lo" {
		return errs.Invalid("loopback interface is not a valid %s parent link", rec.Driver)
	}
	exists, err := bridge.Exists(p.Name)
	if err != nil {
		return err
	}
	if !exists {
		if _, _, err := vlanOf(p.Name); err != nil {
			return err
		}
	}
	p.Made = !exists
	rec.Parent = p
	return nil
}

// vlanOf parses the name of a VLAN of an existing interface.
func vlanOf(name string) (base string, id int, err error) {
	base, vlan, tagged := strings.Cut(name, ".")
	id, err = strconv.Atoi(vlan)
	if there, _ := bridge.Exists(base); !tagged || err != nil || id < 1 || id > 4094 || !there {
		return "", 0, errs.Invalid("invalid subinterface vlan name or missing parent interface %q: name an interface of the host, or one of its VLANs as in eth0.10", name)
	}
	return base, id, nil
}

// makeParent creates the interface that assignParent named.
func makeParent(name string) error {
	if strings.HasPrefix(name, "dm-") {
		return bridge.AddDummy(name)
	}
	base, id, err := vlanOf(name)
	if err != nil {
		return err
	}
	return bridge.AddVLAN(base, name, id)
}
