// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// closed lists the known container escapes that were the fault of an OCI runtime,
// with the first fixed release of each release line. A line that isn't listed
// never got a fix, and later lines never had the flaw.
var closed = []struct {
	runtime  string
	flaws    []string
	releases []string // ascending
}{
	{"runc", []string{"CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"}, []string{"1.2.8", "1.3.3", "1.4.0-rc.3"}},
	{"runc", []string{"CVE-2024-21626"}, []string{"1.1.12"}},
	{"runc", []string{"CVE-2021-30465"}, []string{"1.0.0-rc95"}},
	{"runc", []string{"CVE-2019-5736"}, []string{"1.0.0-rc7"}},
	// According to its authors crun does not have the flaws of 2025.
	{"crun", []string{"CVE-2019-18837"}, []string{"0.10.5"}},
	{"youki", []string{"CVE-2025-62161", "CVE-2025-62596"}, []string{"0.5.7"}},
}

// backports are distribution packages that fixed a flaw without a new version.
// Each has the prefix of the build's name, and the lowest fixed number after the
// prefix.
var backports = []struct {
	runtime, build string
	from           int
	flaw           string
}{
	{"runc", "1.0.0~rc93+ds1-5", 0, "CVE-2021-30465"}, // Debian 11
	{"runc", "1.0.0~rc93+ds1-5+deb11u", 3, "CVE-2024-21626"},
	{"runc", "1.1.5+ds1-1+deb12u", 1, "CVE-2024-21626"}, // Debian 12
	{"runc", "1.1.7-0ubuntu1~20.04.", 2, "CVE-2024-21626"},
	{"runc", "1.1.7-0ubuntu1~22.04.", 2, "CVE-2024-21626"},
}

// RuntimeFlaws returns a sentence about the known container escapes of an OCI
// runtime, given the output of its --version. It is empty if the runtime has none
// or is unknown.
func RuntimeFlaws(says string) string {
	name, version, commit := parseRuntime(says)
	have, ok := parseRelease(version)
	if !ok {
		return ""
	}
	var flaws, releases []string
	for _, c := range closed {
		if c.runtime != name || !have.before(c.releases) {
			continue
		}
		for _, flaw := range c.flaws {
			if !backported(name, flaw, version) && !backported(name, flaw, commit) {
				flaws = append(flaws, flaw)
				releases = append(releases, c.releases...)
			}
		}
	}
	if len(flaws) == 0 {
		return ""
	}
	build := version
	if strings.HasPrefix(commit, version) {
		build = commit // the package's version, which is more specific
	}
	// The first entry is the latest, and its releases have all earlier fixes.
	last := releases[:1]
	for _, r := range releases[1:] {
		if !slices.Contains(last, r) && newer(r, last[len(last)-1]) {
			last = append(last, r)
		}
	}
	return fmt.Sprintf("%s %s is older than the releases that closed known ways out of a container (%s): use %s %s or later, unless this build has these fixes from its distributor",
		name, build, strings.Join(flaws, ", "), name, strings.Join(last, ", "))
}

func newer(a, b string) bool {
	x, _ := parseRelease(a)
	y, _ := parseRelease(b)
	return slices.Compare(x[:], y[:]) > 0
}

// parseRuntime parses "NAME version VERSION" and "commit: COMMIT".
func parseRuntime(says string) (name, version, commit string) {
	for line := range strings.Lines(says) {
		if c, ok := strings.CutPrefix(strings.TrimSpace(line), "commit:"); ok {
			commit = strings.TrimSpace(c)
		}
		if f := strings.Fields(line); name == "" && len(f) == 3 && f[1] == "version" {
			name, version = f[0], f[2]
		}
	}
	return name, version, commit
}

// release is a version in the form that slices.Compare orders: major, minor,
// patch, and the number of the release candidate, or finished.
type release [4]int

const finished = 1 << 30

var releaseForm = regexp.MustCompile(`^v?(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?(?:[-~.]?(rc|dev|alpha|beta)[-.]?(\d{0,6}))?`)

func parseRelease(version string) (release, bool) {
	m := releaseForm.FindStringSubmatch(version)
	if m == nil {
		return release{}, false
	}
	r := release{3: finished}
	for i := range 3 {
		r[i], _ = strconv.Atoi(m[i+1])
	}
	switch {
	case m[4] == "rc":
		r[3], _ = strconv.Atoi(m[5])
	case m[4] != "":
		r[3] = 0 // before any candidate
	}
	return r, true
}

// before reports whether a release has none of the fixes: it is older than the
// fix of its own line or, if its line has no fix, older than the last one.
func (r release) before(fixed []string) bool {
	for i, text := range fixed {
		f, _ := parseRelease(text)
		if slices.Compare(r[:], f[:]) >= 0 && (i == len(fixed)-1 || slices.Equal(r[:2], f[:2])) {
			return false
		}
	}
	return true
}

func backported(runtime, flaw, build string) bool {
	for _, b := range backports {
		rest, ok := strings.CutPrefix(build, b.build)
		if !ok || b.runtime != runtime || b.flaw != flaw {
			continue
		}
		if n, _ := strconv.Atoi(rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]); n >= b.from {
			return true
		}
	}
	return false
}
