package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"holdfast/internal/network/bridge"
	"holdfast/internal/network/firewall"
	"holdfast/internal/network/nft"
)

// Rules are the daemon's options of the packet filter that an endpoint was
// made under. It keeps them, whatever those become.
type Rules struct {
	IPv4       bool `json:"ipv4"` // filter and translate: iptables
	IPv6       bool `json:"ipv6"` // the same: ip6tables
	ICC        bool `json:"icc"`
	Masquerade bool `json:"masquerade"`
	// Direct: by family, published ports can be reached at the container's own
	// address.
	Direct [2]bool `json:"direct,omitzero"`
}

// rulesOf are those of a sandbox; one of a release that kept none has the
// options of the day.
func (p parsed) rulesOf(s Sandbox) Rules {
	for _, e := range s.Endpoints {
		if e.Rules != nil {
			return *e.Rules
		}
	}
	return Rules{IPv4: p.Iptables, IPv6: p.Ip6tables, ICC: p.ICC, Masquerade: p.IPMasq}
}

// onBridge reports whether the sandbox has an interface on a bridge.
func (s Sandbox) onBridge() bool {
	for _, e := range s.Endpoints {
		if e.Bridge != "" {
			return true
		}
	}
	return false
}

// filters says which families need rules: by the options, or for a container
// that was started while they did. m.mu is held.
func (m *Manager) filters() (ipv4, ipv6 bool) {
	ipv4, ipv6 = m.opts.Iptables, m.opts.Ip6tables
	for _, s := range m.sandboxes {
		if s.onBridge() {
			r := m.opts.rulesOf(s)
			ipv4, ipv6 = ipv4 || r.IPv4, ipv6 || r.IPv6
		}
	}
	return ipv4, ipv6
}

// except reports whether an endpoint keeps other rules than its bridge has
// now.
func (t traits) except(e Endpoint) bool {
	return e.Bridge != "" && e.Rules != nil && (e.Rules.ICC != t.icc || e.Rules.Masquerade != t.masq)
}

// exceptions are the containers' addresses on a bridge that keep other rules
// than it has now. m.mu is held.
func (m *Manager) exceptions(b wanted) []nft.Exception {
	var out []nft.Exception
	for _, s := range m.sandboxes {
		for _, e := range s.Endpoints {
			if e.Bridge != b.Name || !b.except(e) {
				continue
			}
			for _, a := range []netip.Prefix{e.IPv4.Address, e.IPv6.Address} {
				if a.IsValid() {
					out = append(out, nft.Exception{Addr: a.Addr(), ICC: e.Rules.ICC, Masquerade: e.Rules.Masquerade})
				}
			}
		}
	}
	return out
}

// excepted reports whether any of a sandbox's endpoints is an exception. m.mu
// is held.
func (m *Manager) excepted(s Sandbox) bool {
	for _, b := range m.bridges() {
		for _, e := range s.Endpoints {
			if b.Name == e.Bridge && b.except(e) {
				return true
			}
		}
	}
	return false
}

// tableFile names the nftables table that this data root has in the kernel. It
// stands beside the networks' records.
const tableFile = "table"

// chooseTable settles which nftables table is used. The name follows from the
// bridge's; but while containers live whose rules are in a table of another
// name, that one goes on: their shims take their ports out of it. One that
// nobody needs any more is removed. It is called before the table is opened
// and before the records are brought to the options.
func (m *Manager) chooseTable(sandboxes map[string]Sandbox, unread []string) error {
	living := len(unread) > 0
	for _, s := range sandboxes {
		r := m.opts.rulesOf(s)
		living = living || s.onBridge() && (r.IPv4 || r.IPv6)
	}
	want := m.opts.Table
	if !m.opts.filtering() && !living {
		want = ""
	}
	last, err := m.lastTable()
	if err != nil {
		return err
	}
	switch {
	case last == want:
		return nil
	case last == "":
	case living:
		m.opts.Table = last
		return nil
	default:
		t, err := firewall.Open(last)
		if err != nil {
			return err
		}
		if err := errors.Join(t.Remove(), t.Close()); err != nil {
			return err
		}
		m.withdraw(last)
		m.opts.Log.Info("packet filter removed", "table", last)
	}
	path := filepath.Join(m.opts.Root, tableFile)
	if want == "" {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("networks: %w", err)
		}
		return nil
	}
	return write(m.opts.Root, tableFile, []byte(want+"\n"))
}

// lastTable is the table that an earlier daemon used on this data root; empty
// is none. Before it was written down it followed from the bridge.
func (m *Manager) lastTable() (string, error) {
	b, err := os.ReadFile(filepath.Join(m.opts.Root, tableFile))
	if err == nil {
		return strings.TrimSpace(string(b)), nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("networks: %w", err)
	}
	if n := m.networks["bridge"]; n != nil && n.Bridge != nil && m.opts.Table == tableOf(m.opts.BridgeName) {
		return tableOf(n.Bridge.Name), nil
	}
	return "", nil
}

// tableOf is the table that goes with a bridge.
func tableOf(bridge string) string {
	if bridge == DefaultBridge {
		return defaultTable
	}
	return defaultTable + "-" + bridge
}

// checkBridge refuses the bridge of another data root whose containers are on
// it: they would be taken for left-overs.
func (m *Manager) checkBridge() error {
	owner, err := bridge.Owner(m.opts.BridgeName)
	if err != nil || owner == "" || owner == m.opts.Root {
		return err
	}
	ports, err := bridge.Ports()
	if err != nil {
		return err
	}
	n := 0
	for name, p := range ports {
		if p.Bridge == m.opts.BridgeName && ourVeth.MatchString(name) {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf(
		"the bridge %s has running containers of the data root %s (%d); they were left alone and go on running: start with that data-root again, or give this one a \"bridge\" of its own, with a \"bip\"",
		m.opts.BridgeName, filepath.Dir(owner), n))
}
