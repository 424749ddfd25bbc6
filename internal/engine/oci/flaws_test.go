// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"strings"
	"testing"
)

func TestRuntimeFlawsAreThoseOfItsRelease(t *testing.T) {
	const masked, leaked, swapped, exe = "CVE-2025-31133 CVE-2025-52565 CVE-2025-52881", "CVE-2024-21626", "CVE-2021-30465", "CVE-2019-5736"
	for name, c := range map[string]struct{ says, want string }{
		"current":                        {"runc version 1.5.1\nspec: 1.3.0\n", ""},
		"fixed in its line":              {"runc version 1.2.8\ncommit: v1.2.8-0-geeb7e60\n", ""},
		"later in its line":              {"runc version 1.3.4\n", ""},
		"not yet fixed in its line":      {"runc version 1.3.2\n", masked},
		"candidate with the fix":         {"runc version 1.4.0-rc.3\n", ""},
		"candidate without the fix":      {"runc version 1.4.0-rc.2\n", masked},
		"between candidates":             {"runc version 1.4.0-rc.2+dev\n", masked},
		"in development":                 {"runc version 1.4.0-dev\n", masked},
		"line without a fix":             {"runc version 1.1.15\n", masked},
		"leaks descriptors":              {"runc version 1.1.11\n", masked + " " + leaked},
		"Debian 12":                      {"runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\n", masked},
		"Debian 12 without its update":   {"runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1\n", masked + " " + leaked},
		"Debian 11":                      {"runc version 1.0.0~rc93+ds1\ncommit: 1.0.0~rc93+ds1-5+deb11u3\n", masked},
		"Debian 11 without its update":   {"runc version 1.0.0~rc93+ds1\ncommit: 1.0.0~rc93+ds1-5+deb11u2\n", masked + " " + leaked},
		"Ubuntu 22.04":                   {"runc version 1.1.7-0ubuntu1~22.04.2\nspec: 1.0.2-dev\n", masked},
		"Ubuntu with a later release":    {"runc version 1.3.3-0ubuntu1~24.04.2\n", ""},
		"old candidate":                  {"runc version 1.0.0-rc93\n", masked + " " + leaked + " " + swapped},
		"very old candidate":             {"runc version 1.0.0-rc6\n", masked + " " + leaked + " " + swapped + " " + exe},
		"crun":                           {"crun version 1.8.1\ncommit: f8a096be\n", ""},
		"old crun":                       {"crun version 0.10.2\n", "CVE-2019-18837"},
		"youki":                          {"youki version 0.5.6\n", "CVE-2025-62161 CVE-2025-62596"},
		"runtime that nobody has judged": {"runsc version release-20240101.0\n", ""},
		"no version":                     {"runc version unknown\n", ""},
		"nothing":                        {"", ""},
		"something else":                 {"usage: frob [OPTIONS]\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := RuntimeFlaws(c.says)
			for _, flaw := range strings.Fields(c.want) {
				if !strings.Contains(got, flaw) {
					t.Errorf("%s is missing in %q", flaw, got)
				}
			}
			if n := strings.Count(got, "CVE-"); n != len(strings.Fields(c.want)) {
				t.Errorf("want %q, got %q", c.want, got)
			}
		})
	}
}

func TestRuntimeFlawsSayWhatToUse(t *testing.T) {
	got := RuntimeFlaws("runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\n")
	want := "runc 1.1.5+ds1-1+deb12u1 is older than the releases that closed known ways out of a container " +
		"(CVE-2025-31133, CVE-2025-52565, CVE-2025-52881): use runc 1.2.8, 1.3.3, 1.4.0-rc.3 or later, unless this build has these fixes from its distributor"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	got = RuntimeFlaws("runc version 1.0.0-rc6\n")
	if !strings.Contains(got, "use runc 1.2.8, 1.3.3, 1.4.0-rc.3 or later") {
		t.Error(got)
	}
}
