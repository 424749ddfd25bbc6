// SPDX-License-Identifier: Apache-2.0

package overlay_test

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"holdfast/internal/network/overlay"
	"holdfast/test/kit"
)

// Security associations need ESP in the kernel, which not each has. Rules and policies do not.
func TestKernelTakesTheRulesAndPoliciesOfEncryption(t *testing.T) {
	t.Parallel()
	ns := kit.NewNetns(t)
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	e := overlay.PlanEncryption(a, []netip.Addr{b}, []overlay.Key{{Tag: 1, Value: make([]byte, 16)}}, 4790)
	run := func(input string, args ...string) string {
		t.Helper()
		var out []byte
		err := ns.Run(func() (err error) {
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Stdin = strings.NewReader(input)
			out, err = cmd.CombinedOutput()
			return err
		})
		if err != nil {
			t.Fatalf("%v: %v %s", args, err, out)
		}
		return string(out)
	}
	run(overlay.RenderEncryptionRules(4790, []uint32{4097}), "nft", "-f", "-")
	got := run("", "nft", "list", "ruleset")
	for _, want := range []string{"udp dport 4790 @th,96,24 0x1001 meta mark set 0x00d0c4e3", "udp dport 4790 @th,96,24 0x1001 meta ipsec missing drop"} {
		if !strings.Contains(got, want) {
			t.Errorf("the rules lack %q:\n%s", want, got)
		}
	}
	for _, p := range e.Policies {
		run("", append([]string{"ip", "xfrm", "policy", "add"}, strings.Fields(p.String())...)...)
	}
	if got := run("", "ip", "xfrm", "policy"); !strings.Contains(got, "dport 4790") || !strings.Contains(got, "mark 0xd0c4e3") {
		t.Errorf("policies: %s", got)
	}
}
