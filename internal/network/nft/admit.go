// SPDX-License-Identifier: Apache-2.0

package nft

import "strings"

// In nftables and in x_tables a drop is final, whichever chain it is in. So if a
// chain of another program drops forwarded packets by default, that chain itself
// has to accept ours. It gets one rule that calls a chain of ours. The rule comes
// after everything that the other program decides explicitly and before its
// default. So its own rules stay effective, and only its default does not apply
// to our packets. Our own table sees the packets too, and decides which may pass
// from and to the bridges.

// Deed is what a rule does with every packet that reaches it.
type Deed int

const (
	Other   Deed = iota // anything else, or not to every packet
	Accepts             // no later rule of the chain sees a packet
	Refuses             // drops, or rejects
	Returns             // to the calling chain
	Logs                // logs some packets or all, and decides nothing
	Calls               // calls another chain
)

// Foreign holds what matters here of another program's rule.
type Foreign struct {
	Deed  Deed
	Chain string // the chain that it calls
	// Out is the interface, if the rule calls the chain for all packets that leave
	// by it and has no other condition. Its Deed is Other then.
	Out string
}

// Apart returns the bridges of a Docker engine, if the chain is its: such a chain
// calls DOCKER for packets to each of its bridges, and relies on its default to
// keep other packets from their containers.
func Apart(chain []Foreign) []string {
	var out []string
	for _, r := range chain {
		if r.Out != "" && r.Chain == "DOCKER" {
			out = append(out, r.Out)
		}
	}
	return out
}

// Placing is the right place for our call in a chain.
type Placing struct {
	// Needed: the chain would refuse packets that none of its rules decides.
	Needed bool
	// Before is the index of the rule that the call comes before, or the chain's
	// length for its end.
	Before int
	// Ours are the indices of our calls that exist.
	Ours []int
	// Right: one call exists in the right place, or none exists and none is needed.
	Right bool
}

// depth bounds nested calls. The kernel's limit is the same.
const depth = 16

// Place finds the place for the call of our chain in a chain with a forward hook.
// policyDrops is the chain's policy. of returns the rules of a chain that it
// calls.
func Place(chain []Foreign, policyDrops bool, ours string, of func(string) []Foreign) Placing {
	s := scan{ours: ours, of: of, end: map[string]Deed{}, still: map[string]bool{}}
	p := Placing{Needed: policyDrops, Before: len(chain)}
	ended := false
	for i, r := range chain {
		if r.Deed == Calls && r.Chain == ours {
			p.Ours = append(p.Ours, i)
		}
		if ended {
			continue
		}
		switch s.ends(r, depth) {
		case Refuses:
			p.Needed, p.Before, ended = true, i, true
		case Accepts:
			p.Needed, ended = false, true
		case Returns: // to the policy
			p.Before, ended = i, true
		}
	}
	if !p.Needed {
		p.Right = len(p.Ours) == 0
		return p
	}
	// Logging before the default drop must not log packets that we accept, so the
	// call comes before it.
	for p.Before > 0 && s.quiet(chain[p.Before-1], depth) {
		p.Before--
	}
	if len(p.Ours) == 1 {
		p.Right = true
		for i := min(p.Ours[0], p.Before); i < max(p.Ours[0], p.Before); i++ {
			// Several daemons must not keep changing the order of their calls.
			p.Right = p.Right && s.sibling(chain[i])
		}
	}
	return p
}

// scan evaluates each chain once, however often it is called. Otherwise chains
// with many nested calls would take exponential time.
type scan struct {
	ours  string
	of    func(string) []Foreign
	end   map[string]Deed // by chain: what finally happens to every packet in it
	still map[string]bool // by chain: none of its rules decides anything
}

// ends returns what finally happens to every packet at a rule: Refuses, Accepts
// or Returns, or Other if some packets go on.
func (s scan) ends(r Foreign, depth int) Deed {
	switch {
	case r.Deed == Accepts, r.Deed == Refuses, r.Deed == Returns:
		return r.Deed
	case r.Deed != Calls, r.Chain == s.ours, depth == 0:
		return Other
	}
	end, known := s.end[r.Chain]
	if known {
		return end
	}
	s.end[r.Chain] = Other // if it calls itself
	for _, r := range s.of(r.Chain) {
		e := s.ends(r, depth-1)
		if e == Accepts || e == Refuses {
			end = e
		}
		if e != Other {
			break
		}
	}
	s.end[r.Chain] = end
	return end
}

// quiet reports whether a rule decides nothing.
func (s scan) quiet(r Foreign, depth int) bool {
	switch {
	case r.Deed == Logs, s.sibling(r):
		return true
	case r.Deed != Calls, depth == 0:
		return false
	}
	still, known := s.still[r.Chain]
	if known {
		return still
	}
	s.still[r.Chain] = false // if it calls itself
	still = true
	for _, r := range s.of(r.Chain) {
		still = still && s.quiet(r, depth-1)
	}
	s.still[r.Chain] = still
	return still
}

// sibling reports whether a rule calls the chain of another daemon of this kind.
func (s scan) sibling(r Foreign) bool {
	return r.Deed == Calls && (r.Chain == s.ours || strings.HasPrefix(r.Chain, "holdfast"))
}

// Admission returns the chain that is added to another program's table. It
// accepts packets from the bridges, except to one of apart, and packets to the
// bridges. In a table of family inet, only limits it to one family.
func Admission(name string, bridges, apart []string, only ...Family) Chain {
	c := Chain{Name: name}
	if len(bridges) == 0 {
		return c
	}
	add := func(out bool, interfaces []string, v Verdict) {
		for _, name := range interfaces {
			var r Rule
			for _, f := range only {
				r = append(r, f)
			}
			c.Rules = append(c.Rules, append(r, Interface{Out: out, Name: name}, Counter{}, v))
		}
	}
	add(true, bridges, accept)
	add(true, apart, Verdict{Kind: "return"})
	add(false, bridges, accept)
	return c
}
