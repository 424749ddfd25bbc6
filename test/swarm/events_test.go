// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"slices"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// eventsOf returns the swarm's events of one kind, each as its action, name and
// changes.
func (n *node) eventsOf(kind string) []string {
	n.t.Helper()
	out := n.Docker("events", "--since", "1h", "--until", "0s", "--filter", "scope=swarm", "--filter", "type="+kind,
		"--format", `{{.Action}} {{.Actor.Attributes.name}}{{range $k, $v := .Actor.Attributes}}{{if ne $k "name"}} {{$k}}={{$v}}{{end}}{{end}}`)
	return strings.FieldsFunc(out, func(r rune) bool { return r == '\n' })
}

// Docker reports a change only to the clients of daemons that run at that moment.
func TestEventsOfTheSwarmAreReportedOnceWhateverEnds(t *testing.T) {
	t.Parallel()
	n := start(t, kit.Options{LiveRestore: true})
	n.DockerWith(strings.NewReader("first"), "secret", "create", "key", "-")
	for i, end := range []func(){
		func() {},
		func() { kit.Kill(t, n.process()) },
		func() { n.Kill9(); n.Start() },
		func() { n.Kill9(); kit.Kill(t, n.process()); n.Start() },
	} {
		name := "c" + string(rune('0'+i))
		kit.Eventually(t, "the swarm answers", func() bool {
			cmd := n.DockerCommand(t.Context(), "config", "create", name, "-")
			cmd.Stdin = strings.NewReader("x")
			return n.Run(cmd).Code == 0
		})
		end()
	}
	kit.Eventually(t, "the swarm answers", func() bool { return n.TryDocker("secret", "rm", "key").Code == 0 })
	n.Docker("service", "create", "-d", "--name", "web", image, "sh", "-c", trap)
	n.await("web", 1)
	n.Docker("service", "scale", "-d", "web=2")
	n.await("web", 2)
	n.Docker("service", "rm", "web")

	want := func(kind string, events ...string) {
		t.Helper()
		var got []string
		kit.Eventually(t, "the events of type "+kind, func() bool {
			// swarmkit updates some objects by itself, how often is its affair.
			got = slices.DeleteFunc(n.eventsOf(kind), func(e string) bool {
				action, rest, _ := strings.Cut(e, " ")
				return action == "update" && !strings.Contains(rest, "=")
			})
			return len(got) >= len(events)
		})
		if !slices.Equal(got, events) {
			t.Errorf("events of type %s: %q, want %q", kind, got, events)
		}
	}
	want("config", "create c0", "create c1", "create c2", "create c3")
	want("secret", "create key", "remove key")
	want("service", "create web", "update web replicas.new=2 replicas.old=1", "remove web")
	if got := n.eventsOf("node"); !slices.ContainsFunc(got, func(e string) bool { return strings.Contains(e, "state.new=ready") }) {
		t.Errorf("events of the node: %q", got)
	}
	if got := n.Docker("events", "--since", "1h", "--until", "0s", "--filter", "service=web", "--format", "{{.Action}}"); !strings.HasPrefix(got, "create") {
		t.Errorf("events of the service by its name: %q", got)
	}
}
