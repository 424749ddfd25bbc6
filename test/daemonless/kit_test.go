// SPDX-License-Identifier: Apache-2.0

// Package daemonless tests the command line while no daemon lives. The answer
// of each command is compared with the daemon's answer. It needs root.
package daemonless

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"holdfast/test/kit"
)

func TestMain(m *testing.M) { kit.Main(m) }

// note is the line on stderr that names the source of the answer.
var note = regexp.MustCompile(`(?m)^holdfast: no daemon answers on /\S+/holdfast\.sock: asking the containers' shims\n`)

const patience = 60 * time.Second

// start starts a daemon with an image of busybox in it.
func start(t *testing.T, o kit.Options) *kit.Daemon {
	t.Helper()
	t.Parallel()
	o.LiveRestore = true
	d := kit.Start(t, o)
	d.Load("busybox:latest", kit.Busybox(t, nil))
	return d
}

// alone runs holdfast while no daemon lives. The command must print the note
// once.
func alone(t *testing.T, d *kit.Daemon, args ...string) kit.Result {
	t.Helper()
	r := d.TryHoldfast(args...)
	if n := len(note.FindAllString(r.Stderr, -1)); n != 1 {
		t.Errorf("%v printed %d times that no daemon answers: %q", args, n, r.Stderr)
	}
	r.Stderr = note.ReplaceAllString(r.Stderr, "")
	return r
}

// ok is alone for a command that must succeed.
func ok(t *testing.T, d *kit.Daemon, args ...string) string {
	t.Helper()
	r := alone(t, d, args...)
	if r.Code != 0 {
		t.Fatalf("%v: exit code %d\n%s%s", args, r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimSuffix(r.Stdout, "\n")
}

// inTerminal starts holdfast in a pseudo-terminal of 30 rows and 100 columns.
func inTerminal(t *testing.T, d *kit.Daemon, args ...string) *kit.Terminal {
	t.Helper()
	return kit.InTerminal(t, d.HoldfastCommand(context.Background(), args...), 30, 100)
}
