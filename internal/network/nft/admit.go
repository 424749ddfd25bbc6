package nft

import "strings"

// In nftables and in x_tables a drop is final in whichever chain it happens,
// so a chain of another program that drops forwarded packets by default has to
// accept ours itself. It is given one rule that calls a chain of ours. That
// rule stands behind everything the other program decides by name and before
// what it does with the rest: its own rules keep their say, our packets only
// don't meet its default. Which packets may pass from and to the bridges is
// decided by our own table, which sees them all the same.

// Deed is what a rule does to every packet that comes to it.
type Deed int

const (
	Other   Deed = iota // something else, or not to every packet
	Accepts             // no rule of the chain comes after it
	Refuses             // drops, or rejects
	Returns             // to the chain that called this one
	Logs                // writes down, some packets or all, and decides nothing
	Calls               // another chain
)

// Foreign is a rule of another program as far as it matters here.
type Foreign struct {
	Deed  Deed
	Chain string // that it calls
	// Out is the interface, if the rule calls the chain for all that goes out by
	// one and for nothing else; its Deed is Other.
	Out string
}

// Apart are the bridges of a Docker engine whose chain this is: it calls its
// own for what goes to them, and leaves it to the default to keep the rest from
// their containers.
func Apart(chain []Foreign) []string {
	var out []string
	for _, r := range chain {
		if r.Out != "" && r.Chain == "DOCKER" {
			out = append(out, r.Out)
		}
	}
	return out
}

// Placing is where in a chain the call of ours belongs.
type Placing struct {
	// Needed: the chain would refuse what none of its rules decides.
	Needed bool
	// Before is the index of the rule that the call comes before; the chain's
	// length is its end.
	Before int
	// Ours are the calls that are there.
	Ours []int
	// Right: there is one, where it belongs; or none, and none is needed.
	Right bool
}

// depth bounds calls in calls; the kernel allows no more.
const depth = 16

// Place finds the place in a chain with a forward hook for the call of the
// chain named ours. policyDrops is the chain's policy, of gives the rules of
// the chains that it calls.
func Place(chain []Foreign, policyDrops bool, ours string, of func(string) []Foreign) Placing {
	s := scan{ours, of}
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
	// What is logged before it is refused by default is not logged when it is
	// accepted.
	for p.Before > 0 && s.quiet(chain[p.Before-1], depth) {
		p.Before--
	}
	if len(p.Ours) == 1 {
		p.Right = true
		for i := min(p.Ours[0], p.Before); i < max(p.Ours[0], p.Before); i++ {
			// Two daemons don't fight for who comes first.
			p.Right = p.Right && s.sibling(chain[i])
		}
	}
	return p
}

type scan struct {
	ours string
	of   func(string) []Foreign
}

// ends says how the way of every packet ends at a rule: Refuses, Accepts or
// Returns, or Other where some go on.
func (s scan) ends(r Foreign, depth int) Deed {
	switch {
	case r.Deed == Accepts, r.Deed == Refuses, r.Deed == Returns:
		return r.Deed
	case r.Deed != Calls, s.sibling(r), depth == 0:
		return Other
	}
	for _, r := range s.of(r.Chain) {
		switch e := s.ends(r, depth-1); e {
		case Accepts, Refuses:
			return e
		case Returns:
			return Other
		}
	}
	return Other
}

// quiet reports whether a rule decides nothing.
func (s scan) quiet(r Foreign, depth int) bool {
	switch {
	case r.Deed == Logs, s.sibling(r):
		return true
	case r.Deed != Calls, depth == 0:
		return false
	}
	for _, r := range s.of(r.Chain) {
		if !s.quiet(r, depth-1) {
			return false
		}
	}
	return true
}

// sibling reports whether a rule calls the chain of a daemon of this kind.
func (s scan) sibling(r Foreign) bool {
	return r.Deed == Calls && (r.Chain == s.ours || strings.HasPrefix(r.Chain, "holdfast"))
}

// Admission is the chain that another program's table is given: it accepts
// what goes to the bridges and what comes from them, unless it goes to one of
// those apart. In tables of family inet it can be for one of the families
// alone.
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
