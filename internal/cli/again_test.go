// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"testing"
	"time"

	"holdfast/internal/cli/status"
)

func TestBuildIsRepeatedOnlyIfTheEndOfTheDaemonHasCutItOff(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	was := status.Life{Started: at}
	for name, c := range map[string]struct {
		life      status.Life
		unix, tls bool
	}{
		"it goes on":                     {status.Life{Started: at}, false, false},
		"killed":                         {status.Life{Started: at, How: "crash"}, false, true},
		"stopped":                        {status.Life{Started: at, How: "clean"}, false, true},
		"stopped with its containers":    {status.Life{Started: at, How: "clean", ContainersStopped: true}, true, true},
		"another has taken over":         {status.Life{Started: at, How: "handover"}, false, false},
		"the machine was started again":  {status.Life{Started: at, How: "reboot"}, true, true},
		"the record has it no more":      {status.Life{Started: at.Add(1), How: "crash"}, false, false},
		"the same time in another place": {status.Life{Started: at.UTC(), How: "crash"}, false, true},
	} {
		lives := []status.Life{{Started: at.Add(-time.Hour), How: "clean", ContainersStopped: true}, c.life, {Started: at.Add(time.Hour)}}
		if got := cutOff(was, lives, false); got != c.unix {
			t.Errorf("%s: %v over a socket that can be passed on", name, got)
		}
		if got := cutOff(was, lives, true); got != c.tls {
			t.Errorf("%s: %v over TLS", name, got)
		}
	}
}

func TestBuildThatUsesPipesIsKnown(t *testing.T) {
	for _, args := range [][]string{{"build", "-"}, {"build", "-f", "-", "."}, {"build", "--file=-", "."}, {"build", "-f-", "."}, {"build", "-o", "-", "."}, {"build", "-o", "type=tar,dest=-", "."}, {"build", "-o", "dest=-,type=tar", "."}} {
		if !usesPipes(args) {
			t.Errorf("%q is not known to use a pipe", args)
		}
	}
	for _, args := range [][]string{{"build", "."}, {"build", "-t", "a-", "--build-arg", "A=b-", "-o", "dest=-dir", "x/-"}} {
		if usesPipes(args) {
			t.Errorf("%q is taken for a build that uses a pipe", args)
		}
	}
}
