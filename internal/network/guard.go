// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/moby/moby/api/types/network"

	"holdfast/internal/network/firewall"
)

// guard is what filters and translates the containers' packets: the engine's table,
// the packet filters of other programs, and the host's IP forwarding. Each of the
// three has a lock of its own.
type guard struct {
	opts       *parsed
	reg        *registry
	table      ruleTable
	others     otherFilters
	forwarding forwarding
}

func newGuard(opts *parsed, reg *registry) *guard {
	g := &guard{opts: opts, reg: reg}
	g.forwarding.opts = opts
	g.table.opts, g.table.reg, g.table.forwarding, g.table.name = opts, reg, &g.forwarding, opts.Table
	g.others.opts, g.others.reg, g.others.table = opts, reg, &g.table
	return g
}

// sync makes the table what it should be, if it differs, and makes other programs'
// packet filters accept what the bridges forward.
func (g *guard) sync(ctx context.Context) error {
	changed, err := g.table.sync()
	if err == nil && changed {
		g.opts.Log.Info("packet filter set up", "table", g.table.name)
	}
	if err == nil {
		// Our own table comes first, because it filters what the others accept.
		g.others.sync(ctx, slog.LevelInfo)
		_, err = g.table.settleRest()
	}
	return err
}

// syncOthers restores the engine's rules in the packet filters of other programs,
// after one of these changed. again is true if it has to be tried again.
func (g *guard) syncOthers(ctx context.Context) (changed, again bool, err error) {
	// What those filters drop decides what our own table has to drop, and the
	// reverse.
	own, err := g.table.sync()
	others := g.others.sync(ctx, slog.LevelWarn)
	settled, err2 := g.table.settleRest()
	return own || others || settled, g.others.isLate(), errors.Join(err, err2)
}

// openTable opens the table if any bridge needs rules. Only Restore calls it: a table
// that was closed stays closed, as a successor may own it.
func (g *guard) openTable() error {
	if _, families := g.reg.filtered(); families == [2]bool{} {
		return nil
	}
	return g.table.open()
}

// admit lets packets of and to bridges pass, and switches on the forwarding that
// they need. The rules come before the host forwards and before the bridges have
// their routes, so that nothing passes unfiltered.
func (g *guard) admit(ctx context.Context, bridges ...wanted) error {
	if err := g.forwarding.intend(bridges...); err != nil {
		return err
	}
	// Also if no family needs rules any more: the sync removes what was left.
	if err := g.sync(ctx); err != nil {
		return err
	}
	return g.forwarding.enable(bridges...)
}

// forgetBridge removes a bridge that is no longer used from all packet filters.
func (g *guard) forgetBridge(ctx context.Context, name string) error {
	g.others.leaveZones(ctx, name)
	return g.sync(ctx)
}

// watch calls own when the table was changed, and others when another program's
// packet filter was. It does nothing without a packet filter.
func (g *guard) watch(own, others func()) (stops []func() error, err error) {
	table := g.table.opened()
	if table == nil {
		return nil, nil
	}
	stop, err := table.Watch(own, others)
	if err != nil {
		return nil, err
	}
	stops = append(stops, stop)
	if stop := g.others.watch(others); stop != nil {
		stops = append(stops, stop)
	}
	return stops, nil
}

// close closes the connections to the kernel and the system bus. The rules stay.
func (g *guard) close() error {
	g.others.close()
	return g.table.close()
}

// tableFile holds the name of the nftables table that this data root uses. It is
// in the directory of the network records.
const tableFile = "table"

// tableName matches the content of tableFile.
var tableName = regexp.MustCompile(`^[0-9A-Za-z_.-]+\n$`)

// chooseTable decides which nftables table is used. The name is derived from the
// bridge's. While containers run whose rules are in a table of another name, that
// table stays in use, because their shims delete their ports from it. A table
// that no container needs any more is removed. Call it before the table is opened
// and before the records are changed to match the options.
func (g *guard) chooseTable(sandboxes map[string]Sandbox, unread []string, o ownership) error {
	living := len(unread) > 0 || g.opts.anyFiltered(sandboxes)
	usual := tableOf(g.opts.BridgeName)
	if o.guest && g.table.name == usual {
		g.table.name = guestTable(g.opts.Root)
	}
	want := g.table.name
	if !g.opts.filtering() && !living {
		want = ""
	}
	last, err := g.lastTable()
	if err != nil {
		return err
	}
	switch {
	case last == want:
		return nil
	case last == "":
	case living:
		g.table.name = last
		if o.abandoned && last != usual {
			// The table is that of the bridge's former owner, which has no containers
			// on the bridge.
			return removeTable(usual)
		}
		return nil
	case o.guest && last == usual:
		// The table belongs to another data root, which took over the bridge while no
		// container of ours was on it.
	default:
		if err := removeTable(last); err != nil {
			return err
		}
		g.others.withdraw(last)
		g.opts.Log.Info("packet filter removed", "table", last)
	}
	path := filepath.Join(g.opts.Root, tableFile)
	if want == "" {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("networks: %w", err)
		}
		return nil
	}
	return write(g.opts.Root, tableFile, []byte(want+"\n"))
}

// anyFiltered reports whether any of the sandboxes needs rules.
func (p *parsed) anyFiltered(sandboxes map[string]Sandbox) bool {
	for _, s := range sandboxes {
		if r := p.rulesOf(s); s.onBridge() && (r.IPv4 || r.IPv6) {
			return true
		}
	}
	return false
}

func removeTable(name string) error {
	t, err := firewall.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(t.Remove(), t.Close())
}

// guestTable is the table of a data root that uses another data root's bridge.
// That data root owns the table with the bridge's name.
func guestTable(root string) string {
	return fmt.Sprintf("%s-%.5x", defaultTable, sha256.Sum256([]byte(root)))
}

// lastTable returns the table that the last daemon of this data root used, or ""
// if there is none. Releases that did not store the name derived it from the
// bridge.
func (g *guard) lastTable() (string, error) {
	b, err := os.ReadFile(filepath.Join(g.opts.Root, tableFile))
	if err == nil && tableName.Match(b) {
		return strings.TrimSpace(string(b)), nil
	}
	if err == nil {
		g.opts.Log.Warn("the record of the packet filter's table is damaged: the table is that of the bridge", "record", filepath.Join(g.opts.Root, tableFile))
	} else if !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("networks: %w", err)
	}
	if name := g.reg.bridgeOf(network.NetworkBridge); name != "" && g.table.name == tableOf(g.opts.BridgeName) {
		return tableOf(name), nil
	}
	return "", nil
}

// tableOf returns the name of the table for a bridge.
func tableOf(bridge string) string {
	if bridge == DefaultBridge {
		return defaultTable
	}
	return defaultTable + "-" + bridge
}
