// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"testing"

	"holdfast/internal/network/nft"
)

// Parsing rules of other programs must not panic, whatever they are, and a rule
// that is not understood must not count as one that decides for every packet.
func FuzzRulesOfOthersAreReadOrRefused(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, 4))
	for v6, form := range legacyForms {
		// The end of a table: an entry with the target ERROR.
		entry := make([]byte, form.head+64)
		entry[form.offsets] = byte(form.head)
		entry[form.offsets+2] = byte(len(entry))
		entry[form.head] = 64
		copy(entry[form.head+2:], "ERROR")
		copy(entry[form.head+32:], "ERROR")
		table, err := parseLegacy(entry, form, 0, 0)
		if err != nil || len(table.chains) > 0 || table.policyDrops {
			f.Fatalf("v6=%v: %+v, %v", v6, table, err)
		}
		f.Add(entry)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, form := range legacyForms {
			if table, err := parseLegacy(b, form, 0, form.head); err == nil {
				nft.Place(table.forward, table.policyDrops, "holdfast", func(c string) []nft.Foreign { return table.chains[c] })
			}
		}
		if _, rule, err := foreignRule(b); err == nil && rule.Deed == nft.Other && rule.Out == "" && rule.Chain != "" {
			t.Errorf("a rule that is not understood calls %q", rule.Chain)
		}
	})
}
