package network

import (
	"strconv"
	"strings"

	"holdfast/internal/network/bridge"
)

// parentRecord is the host's interface that a macvlan or ipvlan network sits
// on.
type parentRecord struct {
	Name string `json:"name"`
	Mode string `json:"mode"` // of the driver
	// Made: by the engine: a VLAN of another interface, or an interface that
	// leads nowhere, for networks without one.
	Made bool `json:"made,omitempty"`
}

const modePassthru = "passthru"

// modes of the drivers, the default first.
var modes = map[string][]string{
	driverMacvlan: {"bridge", "vepa", "private", modePassthru},
	driverIPvlan:  {"l2", "l3", "l3s"},
}

// giveParent judges the option parent: an interface of the host, with ".N"
// behind it its VLAN N, which is made where it is missing. Without one the
// network leads nowhere, as an internal one.
func giveParent(rec *record) error {
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
			return invalid("invalid option %s=%s: want %s", option, mode, strings.Join(modes[rec.Driver], ", "))
		}
	}
	if err := bridge.CanLink(rec.Driver); err != nil {
		return err
	}
	if p.Name == "" {
		p.Name, p.Made = "dm-"+rec.ID[:12], true
		rec.Internal = true
		rec.Parent = p
		return nil
	}
	if p.Name == "lo" {
		return invalid("loopback interface is not a valid %s parent link", rec.Driver)
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

// vlanOf reads the name of a VLAN of an interface that is there.
func vlanOf(name string) (base string, id int, err error) {
	base, vlan, tagged := strings.Cut(name, ".")
	id, err = strconv.Atoi(vlan)
	if there, _ := bridge.Exists(base); !tagged || err != nil || id < 1 || id > 4094 || !there {
		return "", 0, invalid("invalid subinterface vlan name or missing parent interface %q: name an interface of the host, or one of its VLANs as in eth0.10", name)
	}
	return base, id, nil
}

// makeParent makes an interface that giveParent named.
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
