// SPDX-License-Identifier: Apache-2.0

package daemonless

import (
	"regexp"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// Values that differ between two calls of one command: elapsed times, and
// current counters.
var (
	ages    = regexp.MustCompile(`(About |Less than )?(an?|\d+) (second|minute)s?( ago)?`)
	spaces  = regexp.MustCompile(` +`)
	share   = regexp.MustCompile(` \d+ (\d\d:\d\d )`) // CPU share, and start time
	figures = regexp.MustCompile(`\d+(\.\d+)?([kMG]i?)?B?%?`)
)

func settled(s string) string { return spaces.ReplaceAllString(ages.ReplaceAllString(s, "AGE"), " ") }

func TestCommandsThatReadGiveTheSameWithoutADaemon(t *testing.T) {
	d := start(t, kit.Options{})
	d.Holdfast("run", "-d", "--name", "web", "--label", "tier=front", "-p", "80", "-p", "127.0.0.1::53/udp", "-v", "/data",
		"--health-cmd", "true", "--health-interval", "1h", "--health-start-period", "1h", "--health-start-interval", "100ms", "busybox", "sh", "-c", "echo hello; echo trouble >&2; exec sleep 1000")
	d.Holdfast("run", "-d", "--name", "net", "--network", "none", "-e", "A=b", "busybox", "sleep", "1000")
	d.Holdfast("run", "-d", "--name", "still", "busybox", "sleep", "1000")
	d.Holdfast("pause", "still")
	d.TryHoldfast("run", "--name", "failed", "busybox", "sh", "-c", "echo last words; exit 3")
	d.Holdfast("create", "--name", "never", "busybox", "true")
	d.Holdfast("network", "create", "back")
	d.Holdfast("run", "-d", "--name", "inner", "--network", "back", "--log-driver", "local", "busybox", "sh", "-c", "echo one; echo two; exec sleep 1000")
	kit.Eventually(t, "healthy", func() bool { return d.Holdfast("inspect", "-f", "{{.State.Health.Status}}", "web") == "healthy" })
	kit.Eventually(t, "logs", func() bool {
		return strings.Contains(d.Holdfast("logs", "web"), "hello") && strings.Contains(d.Holdfast("logs", "inner"), "two")
	})

	commands := []struct {
		args   []string
		settle func(string) string
	}{
		{[]string{"ps"}, settled},
		{[]string{"ps", "-a", "--no-trunc"}, settled},
		{[]string{"ps", "-aq", "--no-trunc"}, nil},
		{[]string{"ps", "-as", "--format", "{{.Names}} {{.Size}}"}, nil},
		{[]string{"ps", "-a", "--format", "{{.ID}} {{.Image}} {{.Command}} {{.State}} {{.Ports}} {{.Names}} {{.Networks}} {{.Mounts}} {{.Labels}} {{.LocalVolumes}}"}, nil},
		{[]string{"ps", "-a", "--format", "json"}, settled},
		{[]string{"ps", "-n", "2", "--format", "{{.Names}}"}, nil},
		{[]string{"ps", "-a", "--filter", "status=exited", "--filter", "exited=3", "--format", "{{.Names}}"}, nil},
		{[]string{"ps", "-a", "--filter", "ancestor=busybox", "--format", "{{.Names}}"}, nil},
		{[]string{"ps", "--filter", "health=healthy", "--filter", "label=tier=front", "--format", "{{.Names}}"}, nil},
		{[]string{"ps", "-a", "--filter", "network=bridge", "--format", "{{.Names}}"}, nil},
		{[]string{"ps", "--filter", "network=back", "--format", "{{.Names}}"}, nil},
		{[]string{"ps", "--filter", "publish=80", "--format", "{{.Names}}"}, nil},
		{[]string{"ps", "--filter", "bad=filter"}, nil},
		{[]string{"inspect", "web", "net", "still", "failed", "never", "inner"}, nil},
		{[]string{"container", "inspect", "-s", "web", "failed"}, nil},
		{[]string{"inspect", "-f", "{{json .NetworkSettings.Ports}}", "web"}, nil},
		{[]string{"container", "inspect", "nobody"}, nil},
		{[]string{"port", "web"}, nil},
		{[]string{"port", "web", "80"}, nil},
		{[]string{"logs", "web"}, nil},
		{[]string{"logs", "-t", "--details", "web"}, nil},
		{[]string{"logs", "--tail", "1", "inner"}, nil},
		{[]string{"logs", "failed"}, nil},
		{[]string{"logs", "-f", "failed"}, nil},
		{[]string{"logs", "nobody"}, nil},
		{[]string{"top", "web"}, func(s string) string {
			return share.ReplaceAllString(spaces.ReplaceAllString(s, " "), " C $1")
		}},
		{[]string{"top", "net", "-o", "pid,args"}, nil},
		{[]string{"top", "failed"}, nil},
		{[]string{"stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}} {{.MemUsage}} {{.CPUPerc}}", "web", "net"}, func(s string) string { return figures.ReplaceAllString(s, "N") }},
		{[]string{"stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}"}, nil},
		{[]string{"wait", "failed"}, nil},
		{[]string{"wait", "nobody"}, nil},
		{[]string{"exec", "web", "sh", "-c", "echo out; echo err >&2; exit 5"}, nil},
		{[]string{"exec", "-u", "nobody", "-w", "/tmp", "-e", "X=y", "net", "sh", "-c", "id -un; pwd; echo $X $A"}, nil},
		{[]string{"exec", "web", "no-such-program"}, nil},
		{[]string{"exec", "failed", "true"}, nil},
		{[]string{"exec", "still", "true"}, nil},
		{[]string{"exec", "-d", "web", "true"}, nil},
		{[]string{"attach", "failed"}, nil},
		{[]string{"kill", "failed"}, nil},
		{[]string{"kill", "-s", "NOSUCH", "web"}, nil},
		{[]string{"stop", "failed"}, nil},
		{[]string{"stop", "nobody"}, nil},
	}
	run := func(do func(args ...string) kit.Result) []kit.Result {
		var all []kit.Result
		for _, c := range commands {
			r := do(c.args...)
			if c.settle != nil {
				r.Stdout = c.settle(r.Stdout)
			}
			all = append(all, r)
		}
		return all
	}
	with := run(d.TryHoldfast)
	d.Kill9()
	without := run(func(args ...string) kit.Result { return alone(t, d, args...) })
	for i, c := range commands {
		if with[i] != without[i] {
			t.Errorf("holdfast %s\nwith a daemon: %+v\nwithout:       %+v", strings.Join(c.args, " "), with[i], without[i])
		}
	}
}

func TestWhatNeedsTheDaemonSaysSo(t *testing.T) {
	d := start(t, kit.Options{})
	d.Holdfast("run", "-d", "--name", "web", "busybox", "sleep", "1000")
	d.Kill9()
	for _, c := range []struct {
		args string
		code int
		what string
	}{
		{"run busybox true", 125, "creating a container"},
		{"start web", 1, "starting a container"},
		{"restart web", 1, "restarting a container"},
		{"rm -f web", 1, "removing a container"},
		{"rename web other", 1, "renaming a container"},
		{"update --cpus 1 web", 1, "updating a container"},
		{"container prune -f", 1, "removing containers"},
		{"images", 1, "listing images"},
		{"pull busybox", 1, "pulling an image"},
		{"rmi busybox", 1, "removing an image"},
		{"volume ls", 1, "listing volumes"},
		{"volume create v", 1, "creating a volume"},
		{"network ls", 1, "listing networks"},
		{"network connect none web", 1, "connecting a container to a network"},
		{"system df", 1, "disk usage"},
		{"version", 1, "the daemon's version"},
	} {
		r := alone(t, d, strings.Fields(c.args)...)
		if want := c.what + " needs the daemon, and none answers: start holdfastd"; r.Code != c.code || !strings.Contains(r.Stderr, want) {
			t.Errorf("%s: exit code %d, %q; want %d and %q", c.args, r.Code, r.Stderr, c.code, want)
		}
	}
	if got := ok(t, d, "ps", "--format", "{{.Names}}"); got != "web" {
		t.Errorf("ps shows %q", got)
	}
}

func TestNobodyIsAskedWhereNoDaemonOfOursWas(t *testing.T) {
	t.Parallel()
	d := kit.New(t, kit.Options{})
	r := d.TryHoldfast("ps")
	if r.Code != 1 || note.MatchString(r.Stderr) || !strings.Contains(r.Stderr, "failed to connect") {
		t.Errorf("%+v", r)
	}
}

func TestStatusOfTheDaemonIsNobodyElses(t *testing.T) {
	d := start(t, kit.Options{})
	d.Holdfast("run", "-d", "--name", "web", "busybox", "sleep", "1000")
	d.Kill9()
	r := d.TryHoldfast("daemon", "status")
	if r.Code != 1 || r.Stderr != "" || !strings.Contains(r.Stdout, "not answering") || !strings.Contains(r.Stdout, "web") {
		t.Errorf("%+v", r)
	}
}
