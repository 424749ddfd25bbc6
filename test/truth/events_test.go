// SPDX-License-Identifier: Apache-2.0

package truth

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"holdfast/test/kit"
)

// A client that gets an event finds the container in the state that the event
// reports.
func TestStateIsThatOfTheEvent(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(t, nil))
	api := d.Client()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	events := api.Events(ctx, client.EventsListOptions{Since: "1", Filters: client.Filters{}.
		Add("type", "container").Add("event", "start").Add("event", "die").Add("event", "pause").Add("event", "unpause")})
	// Its runs end at once, and the policy starts it again.
	d.Docker("run", "-d", "--name", "again", "--restart", "on-failure:3", image, "false")
	d.Docker("run", "-d", "--name", "box", image, "sleep", "1000")
	// wait returns after the next event, which must be of the container and of the
	// action.
	var wrong []string
	wait := func(name, action string) {
		for {
			select {
			case m := <-events.Messages:
				got, err := api.ContainerInspect(ctx, m.Actor.ID, client.ContainerInspectOptions{})
				if err != nil {
					t.Fatal(err)
				}
				s := got.Container.State
				if m.Actor.Attributes["name"] == "again" {
					if m.Action == "die" && strings.HasPrefix(s.FinishedAt, "0001") {
						wrong = append(wrong, "die, and no run has ended")
					}
					continue
				}
				want := map[string]string{"start": "running", "unpause": "running", "pause": "paused", "die": "exited"}[string(m.Action)]
				if string(s.Status) != want {
					wrong = append(wrong, string(m.Action)+" "+string(s.Status))
				}
				if string(m.Action) != action || m.Actor.Attributes["name"] != name {
					t.Fatalf("event %s of %s, not %s of %s", m.Action, m.Actor.Attributes["name"], action, name)
				}
				return
			case err := <-events.Err:
				t.Fatalf("events end while %s of %s is awaited: %v", action, name, err)
			}
		}
	}
	wait("box", "start")
	for range 25 {
		do := func(_ any, err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		do(api.ContainerPause(ctx, "box", client.ContainerPauseOptions{}))
		wait("box", "pause")
		do(api.ContainerUnpause(ctx, "box", client.ContainerUnpauseOptions{}))
		wait("box", "unpause")
		do(api.ContainerKill(ctx, "box", client.ContainerKillOptions{Signal: "KILL"}))
		wait("box", "die")
		// The answer to the start must not delay the look.
		started := make(chan error, 1)
		go func() {
			_, err := api.ContainerStart(ctx, "box", client.ContainerStartOptions{})
			started <- err
		}()
		wait("box", "start")
		if err := <-started; err != nil {
			t.Fatal(err)
		}
	}
	if len(wrong) > 0 {
		t.Errorf("%d times the state was not that of the event: %q", len(wrong), wrong)
	}
}
