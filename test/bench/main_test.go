// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"flag"
	"os"
	"strings"
	"testing"

	"holdfast/test/kit"
)

var (
	full  = flag.Bool("full", false, "measure with as many rounds and containers as the targets speak of, and beside other engines")
	write = flag.String("write", "", "`file` that gets the report")
	only  = flag.String("only", "", "comma separated parts to measure; empty is all: run, verbs, many, size, ps, restart, gaps, builds, most, health, pull, logs, swarm, net")
	alone = flag.Bool("alone", false, "measure no other engine")
	short = flag.Bool("short-beside", false, "measure beside other engines, as little as without -full")
)

func TestMain(m *testing.M) {
	flag.Parse()
	// All engines are current releases and use the same runtime.
	if home, err := os.UserHomeDir(); err == nil {
		os.Setenv("PATH", home+"/.cache/holdfast/peer:"+os.Getenv("PATH"))
	}
	if os.Geteuid() == 0 {
		kit.Isolate(0)
	}
	kit.Main(m)
}

// beside reports whether other engines are measured.
func beside() bool { return (*full || *short) && !*alone }

func part(name string) bool {
	if *only == "" {
		return true
	}
	for p := range strings.SplitSeq(*only, ",") {
		if p == name {
			return true
		}
	}
	return false
}
