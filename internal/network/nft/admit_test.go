// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"slices"
	"testing"
)

// Each case is a packet filter as hosts have it, and the right place for our
// call.
func TestOurCallStandsBetweenTheOthersRulesAndTheirDefault(t *testing.T) {
	call := func(chain string) Foreign { return Foreign{Deed: Calls, Chain: chain} }
	rules := func(ds ...Deed) []Foreign {
		var out []Foreign
		for _, d := range ds {
			out = append(out, Foreign{Deed: d})
		}
		return out
	}
	ufw := map[string][]Foreign{
		"before-logging": nil, "before": append(rules(Other, Other), call("user")), "user": nil,
		"after": nil, "after-logging": rules(Logs), "reject": nil, "track": nil,
	}
	ufwReject := map[string][]Foreign{"reject": rules(Refuses)}
	ufwChain := []Foreign{call("before-logging"), call("before"), call("after"), call("after-logging"), call("reject"), call("track")}
	docker := map[string][]Foreign{"DOCKER-USER": rules(Returns), "ISOLATION": {{Deed: Other}, {Deed: Returns}}}
	dockerChain := append([]Foreign{call("DOCKER-USER"), call("ISOLATION")}, rules(Other, Other)...)
	ours := call("holdfast")
	for _, c := range []struct {
		name   string
		chain  []Foreign
		drops  bool
		chains map[string][]Foreign
		want   Placing
	}{
		{"nothing is refused", rules(Other), false, nil, Placing{Before: 1, Right: true}},
		{"no longer refused", []Foreign{ours}, false, nil, Placing{Before: 1, Ours: []int{0}}},
		{"policy", nil, true, nil, Placing{Needed: true}},
		{"policy, and right", []Foreign{ours}, true, nil, Placing{Needed: true, Ours: []int{0}, Right: true}},
		{"policy after rules", rules(Other, Other), true, nil, Placing{Needed: true, Before: 2}},
		{"twice", []Foreign{ours, ours}, true, nil, Placing{Needed: true, Ours: []int{0, 1}}},
		{"a rule was appended", []Foreign{ours, {Deed: Other}}, true, nil, Placing{Needed: true, Before: 2, Ours: []int{0}}},
		{"a rule was put first", []Foreign{{Deed: Other}, ours}, true, nil, Placing{Needed: true, Before: 1, Ours: []int{1}, Right: true}},
		{"last rule", rules(Other, Refuses), false, nil, Placing{Needed: true, Before: 1}},
		{"last rule, and right", []Foreign{{Deed: Other}, ours, {Deed: Refuses}}, false, nil, Placing{Needed: true, Before: 1, Ours: []int{1}, Right: true}},
		{"behind the last rule", []Foreign{{Deed: Refuses}, ours}, true, nil, Placing{Needed: true, Ours: []int{1}}},
		{"logged, then refused", rules(Other, Logs, Logs, Refuses), false, nil, Placing{Needed: true, Before: 1}},
		{"called, then refused", []Foreign{{Deed: Other}, call("end")}, false, map[string][]Foreign{"end": rules(Logs, Refuses)}, Placing{Needed: true, Before: 1}},
		{"accepted by default", rules(Accepts), true, nil, Placing{Before: 1, Right: true}},
		{"returned to the policy", rules(Other, Returns, Other), true, nil, Placing{Needed: true, Before: 1}},
		{"ufw drops", ufwChain, true, ufw, Placing{Needed: true, Before: 2}},
		{"ufw rejects", ufwChain, true, merge(ufw, ufwReject), Placing{Needed: true, Before: 2}},
		{"dockerd", dockerChain, true, docker, Placing{Needed: true, Before: 4}},
		{"dockerd came later", append(slices.Clone(dockerChain), ours), true, docker, Placing{Needed: true, Before: 4, Ours: []int{4}, Right: true}},
		{"another daemon's call before", []Foreign{call("holdfast-b"), ours}, true, nil, Placing{Needed: true, Ours: []int{1}, Right: true}},
		{"another daemon's call behind", []Foreign{ours, call("holdfast-b")}, true, nil, Placing{Needed: true, Ours: []int{0}, Right: true}},
		{"another daemon's rest", []Foreign{{Deed: Other}, call("holdfast-b")}, false, map[string][]Foreign{"holdfast-b": {{Deed: Other}, {Deed: Refuses}}}, Placing{Needed: true, Before: 1}},
		{"our own rest", []Foreign{{Deed: Other}, ours}, false, map[string][]Foreign{"holdfast": {{Deed: Other}, {Deed: Refuses}}}, Placing{Before: 2, Ours: []int{1}}},
		{"our own rest, and wanted", []Foreign{{Deed: Other}, ours}, true, map[string][]Foreign{"holdfast": {{Deed: Other}, {Deed: Refuses}}}, Placing{Needed: true, Before: 1, Ours: []int{1}, Right: true}},
		{"calls in a circle", []Foreign{call("a")}, true, map[string][]Foreign{"a": {call("b")}, "b": {call("a")}}, Placing{Needed: true, Before: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := Place(c.chain, c.drops, "holdfast", func(name string) []Foreign { return c.chains[name] })
			if got.Needed != c.want.Needed || got.Right != c.want.Right || !slices.Equal(got.Ours, c.want.Ours) ||
				got.Needed && got.Before != c.want.Before {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func merge(a, b map[string][]Foreign) map[string][]Foreign {
	out := map[string][]Foreign{}
	for _, m := range []map[string][]Foreign{a, b} {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}

func TestContainersOfADockerEngineAreLeftToItsDefault(t *testing.T) {
	chain := []Foreign{
		{Deed: Calls, Chain: "DOCKER-USER"}, {Chain: "DOCKER", Out: "docker0"}, {},
		{Chain: "DOCKER", Out: "br-0123456789ab"}, {Chain: "MINE", Out: "eth0"},
	}
	var got string
	for _, r := range Admission("holdfast", []string{"holdfast0"}, Apart(chain), Family{}).Rules {
		got += r.String() + "\n"
	}
	want := `meta nfproto ipv4 oifname "holdfast0" counter accept
meta nfproto ipv4 oifname "docker0" counter return
meta nfproto ipv4 oifname "br-0123456789ab" counter return
meta nfproto ipv4 iifname "holdfast0" counter accept
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if rules := Admission("holdfast", nil, []string{"docker0"}).Rules; len(rules) > 0 {
		t.Errorf("without a bridge of ours: %v", rules)
	}
}
