// SPDX-License-Identifier: Apache-2.0

// Package systemd asks systemd for what sd_notify(3) does not provide: whether
// the system is shutting down, and a scope for processes that outlive the unit
// which started them.
//
// It uses D-Bus over the private socket that systemd has for root, as systemctl
// does. The system bus is an ordinary service, which may end before the daemon
// when the system shuts down.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	service = "org.freedesktop.systemd1"
	object  = "/org/freedesktop/systemd1"
	manager = service + ".Manager"
)

// Patience bounds one request. A busy systemd must answer within this time.
const Patience = 10 * time.Second

// Manager is the systemd that manages this host.
type Manager struct {
	socket string
	unit   string // this process's unit, such as "holdfast.service"
	slice  string // the unit's slice, such as "system.slice"
}

// Find returns the systemd that runs this process as the main process of a
// service, or nil if there is none. All methods work on a nil Manager: the system
// never shuts down, and processes are not moved.
func Find() *Manager {
	return find("/")
}

// find is Find with all files below root.
func find(root string) *Manager {
	// The directory exists if systemd is the system's manager; see sd_booted(3).
	if st, err := os.Lstat(filepath.Join(root, "run/systemd/system")); err != nil || !st.IsDir() {
		return nil
	}
	own, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		return nil
	}
	unit, slice := unitOf(string(own))
	if unit == "" {
		return nil
	}
	return &Manager{socket: filepath.Join(root, "run/systemd/private"), unit: unit, slice: slice}
}

// unitOf finds the service, and its slice, in the content of /proc/PID/cgroup
// (cgroups(7)). Both are empty if the process is in no service.
func unitOf(cgroup string) (unit, slice string) {
	// In hybrid mode systemd uses its own v1 hierarchy.
	var v1, v2 string
	for line := range strings.Lines(cgroup) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(parts) != 3:
		case parts[1] == "name=systemd":
			v1 = parts[2]
		case parts[1] == "":
			v2 = parts[2]
		}
	}
	for _, group := range []string{v1, v2} {
		for dir := path.Clean("/" + group); dir != "/"; dir = path.Dir(dir) {
			if !strings.HasSuffix(dir, ".service") {
				continue
			}
			unit = path.Base(dir)
			slice = path.Base(path.Dir(dir))
			if !strings.HasSuffix(slice, ".slice") {
				slice = "-.slice"
			}
			return unit, slice
		}
	}
	return "", ""
}

// GoesDown reports whether the system is shutting down or rebooting. If err is
// not nil this is unknown.
func (m *Manager) GoesDown(ctx context.Context) (bool, error) {
	if m == nil {
		return false, nil
	}
	var state string
	err := m.ask(ctx, func(ctx context.Context, o dbus.BusObject) error {
		var v dbus.Variant
		if err := o.CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, manager, "SystemState").Store(&v); err != nil {
			return err
		}
		return v.Store(&state)
	})
	if err != nil {
		return false, fmt.Errorf("ask systemd whether the system goes down: %w", err)
	}
	return state == "stopping", nil
}

// Scope returns the name of the scope that Move moves processes into.
func (m *Manager) Scope() string {
	if m == nil {
		return ""
	}
	return strings.TrimSuffix(m.unit, ".service") + "-shims.scope"
}

// Move moves processes from this process's unit into a scope next to it. There
// neither the end of the unit nor "systemctl kill" affects them, and their memory
// is not accounted to the unit. At shutdown systemd does not stop the scope. The
// scope ends with its last process.
func (m *Manager) Move(ctx context.Context, pids ...int) error {
	if m == nil || len(pids) == 0 {
		return nil
	}
	numbers := make([]uint32, len(pids))
	for i, pid := range pids {
		numbers[i] = uint32(pid)
	}
	err := m.ask(ctx, func(ctx context.Context, o dbus.BusObject) error {
		var last error
		// Between two calls the scope may end, or another process may create it.
		for range 3 {
			attached := o.CallWithContext(ctx, manager+".AttachProcessesToUnit", 0, m.Scope(), "", numbers).Err
			if attached == nil {
				return nil
			}
			last = o.CallWithContext(ctx, manager+".StartTransientUnit", 0, m.Scope(), "fail", m.properties(numbers), []struct {
				Name       string
				Properties []property
			}{}).Err
			if last == nil {
				return nil
			}
			if ctx.Err() != nil {
				break
			}
			last = errors.Join(attached, last)
		}
		return last
	})
	if err != nil {
		return fmt.Errorf("move processes to %s: %w", m.Scope(), err)
	}
	return nil
}

type property struct {
	Name  string
	Value dbus.Variant
}

func (m *Manager) properties(pids []uint32) []property {
	return []property{
		{"Description", dbus.MakeVariant("Shims of " + m.unit)},
		{"Slice", dbus.MakeVariant(m.slice)},
		{"PIDs", dbus.MakeVariant(pids)},
		// Without it no process can be added later.
		{"Delegate", dbus.MakeVariant(true)},
		// Otherwise it would be stopped at once at shutdown, before the daemon has
		// stopped the containers.
		{"DefaultDependencies", dbus.MakeVariant(false)},
		{"CollectMode", dbus.MakeVariant("inactive-or-failed")},
	}
}

// Beside reports whether a process is still in this process's unit.
func (m *Manager) Beside(pid int) bool {
	if m == nil {
		return false
	}
	group, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return false
	}
	unit, _ := unitOf(string(group))
	return unit == m.unit
}

// ask connects to systemd for one request.
func (m *Manager) ask(ctx context.Context, question func(context.Context, dbus.BusObject) error) error {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	conn, err := dbus.Dial("unix:path="+m.socket, dbus.WithContext(ctx))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: systemd has no socket for root there", err)
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	// The private socket is not a bus, so there is no Hello call.
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Getuid()))}); err != nil {
		return fmt.Errorf("systemd's socket %s: %w", m.socket, err)
	}
	return question(ctx, conn.Object(service, object))
}
