// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"testing"
)

func TestBuilderKeyIsReadAsDockerDoes(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{``, `{GCOff:false ReservedSpace:0 MaxUsedSpace:0 MinFreeSpace:0 Policy:[] HistoryAge:0s HistoryEntries:<nil> Entitlements:[network.host]}`},
		{`{"gc":{"enabled":false},"entitlements":{"network-host":false,"security-insecure":true}}`,
			`{GCOff:true ReservedSpace:0 MaxUsedSpace:0 MinFreeSpace:0 Policy:[] HistoryAge:0s HistoryEntries:<nil> Entitlements:[security.insecure]}`},
		{`{"gc":{"defaultKeepStorage":"1GB","defaultMinFreeSpace":5,"policy":[{"keepStorage":"1MB","filter":["unused-for=48h","type==source.local"]},{"all":true}]},"history":{"maxAge":"1h"}}`,
			`{GCOff:false ReservedSpace:1073741824 MaxUsedSpace:0 MinFreeSpace:5 Policy:[{All:false Filter:[type==source.local] KeepDuration:48h0m0s ReservedSpace:1048576 MaxUsedSpace:0 MinFreeSpace:0} {All:true Filter:[] KeepDuration:0s ReservedSpace:0 MaxUsedSpace:0 MinFreeSpace:0}] HistoryAge:1h0m0s HistoryEntries:<nil> Entitlements:[network.host]}`},
	} {
		b, err := parseBuilder(c.text)
		if got := fmt.Sprintf("%+v", b); err != nil || got != c.want {
			t.Errorf("%s:\n%s, %v, want\n%s", c.text, got, err, c.want)
		}
	}
	for _, text := range []string{
		`{"gc":{"polcy":[]}}`, `{"gc":{"defaultKeepStorage":"much"}}`, `{"gc":{"policy":[{"filter":["x"]}]}}`,
		`{"gc":{"policy":[{"keepDuration":"soon"}]}}`, `{"history":{"maxAge":"-1h"}}`, `{"entitlements":{"device":true}}`,
	} {
		if _, err := parseBuilder(text); err == nil {
			t.Errorf("%s is accepted", text)
		}
	}
}
