// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/godbus/dbus/v5"
)

// Names of firewalld's interface (firewalld.dbus(5)).
const (
	firewalldName = "org.fedoraproject.FirewallD1"
	firewalldPath = "/org/fedoraproject/FirewallD1"
	firewalldZone = firewalldName + ".zone"
)

// The zones that bridges are put into. An administrator may create the first one
// to have other rules for containers than the second, which is firewalld's own
// zone that accepts everything. The engine does not create a zone, because that
// takes a reload of firewalld, during which the whole host accepts no new
// connections.
const (
	ownZone  = "holdfast"
	openZone = "trusted"
)

// Firewalld talks to the firewalld of this network namespace, if there is one.
// Firewalld decides by zone which packets from an interface it accepts, and
// accepts packets that were translated to go there. Its methods may be called
// concurrently. The zero value is ready to use.
type Firewalld struct {
	mu      sync.Mutex
	conn    *dbus.Conn // nil without a bus
	met     bool       // a firewalld has answered
	changed func()
}

// Watch calls changed when firewalld started, stopped or reloaded. A reload
// removes our bridges from their zones. changed must not block.
func (f *Firewalld) Watch(changed func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changed = changed
}

// Admit puts bridges that are in no zone into one that accepts what is forwarded,
// and returns their names. A bridge that is in a zone was put there by the
// engine, or by an administrator on purpose. Without a bus or without firewalld
// it does nothing. It never starts firewalld.
func (f *Firewalld) Admit(ctx context.Context, bridges []string) (put []string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	zones, zone, err := f.zones(ctx)
	if zones == nil || err != nil {
		return nil, err
	}
	var errs []error
	for _, b := range bridges {
		in, err := f.zoneOf(ctx, zones, b)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if in != "" {
			continue
		}
		if err := zones.CallWithContext(ctx, firewalldZone+".addInterface", dbus.FlagNoAutoStart, zone, b).Err; err != nil {
			errs = append(errs, fmt.Errorf("firewalld: put %s into the zone %s: %w", b, zone, err))
			continue
		}
		put = append(put, b)
	}
	return put, errors.Join(errs...)
}

// Forget removes bridges from the zone that Admit puts them into.
func (f *Firewalld) Forget(ctx context.Context, bridges ...string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	zones, zone, err := f.zones(ctx)
	if !f.met {
		// If no firewalld has ever answered, there is nothing to remove. At shutdown
		// the bus may already be gone and not report that.
		return nil
	}
	if zones == nil || err != nil {
		return err
	}
	var errs []error
	for _, b := range bridges {
		in, err := f.zoneOf(ctx, zones, b)
		if err == nil && in == zone {
			err = zones.CallWithContext(ctx, firewalldZone+".removeInterface", dbus.FlagNoAutoStart, zone, b).Err
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("firewalld: take %s out of the zone %s: %w", b, zone, err))
		}
	}
	return errors.Join(errs...)
}

// Close closes the connection. The bridges stay in their zones.
func (f *Firewalld) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn == nil {
		return nil
	}
	conn := f.conn
	f.conn = nil
	return conn.Close()
}

func (f *Firewalld) zoneOf(ctx context.Context, zones dbus.BusObject, bridge string) (zone string, err error) {
	err = zones.CallWithContext(ctx, firewalldZone+".getZoneOfInterface", dbus.FlagNoAutoStart, bridge).Store(&zone)
	if err != nil {
		return "", fmt.Errorf("firewalld: zone of %s: %w", bridge, err)
	}
	return zone, nil
}

// zones returns firewalld's D-Bus object and the zone for our bridges, or nil if
// no firewalld is responsible for them.
func (f *Firewalld) zones(ctx context.Context) (zones dbus.BusObject, zone string, err error) {
	if f.conn != nil && !f.conn.Connected() {
		f.conn = nil // the other side closed it
	}
	if f.conn == nil {
		if f.conn, err = f.dial(); f.conn == nil {
			return nil, "", err
		}
	}
	bus := f.conn.BusObject()
	var owner string
	if err := bus.CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, firewalldName).Store(&owner); err != nil {
		if e := new(dbus.Error); errors.As(err, e) && e.Name == "org.freedesktop.DBus.Error.NameHasNoOwner" {
			return nil, "", nil
		}
		return nil, "", fmt.Errorf("firewalld: %w", err)
	}
	// The bus may be that of a host whose network namespace is not ours.
	var pid uint32
	if err := bus.CallWithContext(ctx, "org.freedesktop.DBus.GetConnectionUnixProcessID", 0, owner).Store(&pid); err == nil {
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
		ours, err2 := os.Readlink("/proc/self/ns/net")
		if err == nil && err2 == nil && theirs != ours {
			return nil, "", nil
		}
	}
	zones = f.conn.Object(owner, firewalldPath)
	var all []string
	if err := zones.CallWithContext(ctx, firewalldZone+".getZones", dbus.FlagNoAutoStart).Store(&all); err != nil {
		return nil, "", fmt.Errorf("firewalld: list zones: %w", err)
	}
	f.met = true
	if slices.Contains(all, ownZone) {
		return zones, ownZone, nil
	}
	return zones, openZone, nil
}

// dial returns nil, nil if there is no bus.
func (f *Firewalld) dial() (*dbus.Conn, error) {
	const environment, usual = "DBUS_SYSTEM_BUS_ADDRESS", "/run/dbus/system_bus_socket"
	if os.Getenv(environment) == "" {
		if _, err := os.Stat(usual); err != nil {
			return nil, nil
		}
	}
	conn, err := dbus.ConnectSystemBus()
	if err != nil {
		// The socket exists but no process listens: there is no bus, so no firewalld.
		if errors.Is(err, os.ErrNotExist) || strings.Contains(err.Error(), "connection refused") {
			return nil, nil
		}
		return nil, fmt.Errorf("system bus: %w", err)
	}
	signals := make(chan *dbus.Signal, 64)
	conn.Signal(signals)
	err = errors.Join(
		conn.AddMatchSignal(dbus.WithMatchSender(firewalldName), dbus.WithMatchInterface(firewalldName), dbus.WithMatchMember("Reloaded")),
		conn.AddMatchSignal(dbus.WithMatchInterface("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, firewalldName)),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("system bus: %w", err), conn.Close())
	}
	go func() {
		for s := range signals {
			if s.Name != firewalldName+".Reloaded" && s.Name != "org.freedesktop.DBus.NameOwnerChanged" {
				continue
			}
			f.mu.Lock()
			changed := f.changed
			f.mu.Unlock()
			if changed != nil {
				changed()
			}
		}
	}()
	return conn, nil
}
