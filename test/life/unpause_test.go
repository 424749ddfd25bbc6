// SPDX-License-Identifier: Apache-2.0

package life

import (
	"encoding/json"
	"fmt"
	"sync"
	"testing"

	"holdfast/test/kit"
)

// A program whose time ran out while it was frozen ends as soon as it is thawed,
// often before the runtime has returned. The answer to the unpause must not be
// followed by a container that is shown as paused.
func TestUnpausedContainerIsNotPausedThoughItEndsAtOnce(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(t, nil))
	c := d.HTTP()
	post := func(path string) int {
		t.Helper()
		resp, err := c.Post("http://d/containers/web/"+path, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	d.Docker("create", "--name", "web", image, "sh", "-c", "sleep 0.5; exit 3")
	for range 8 {
		if code := post("start"); code != 204 {
			t.Fatalf("start: %d", code)
		}
		if code := post("pause"); code != 204 {
			t.Fatalf("pause: %d", code)
		}
		// The time of its sleep goes on while it is frozen, and this takes longer.
		d.Docker("run", "--rm", image, "sleep", "0.5")
		if code := post("unpause"); code != 204 {
			t.Fatalf("unpause: %d", code)
		}
		resp, err := c.Get("http://d/containers/web/json")
		if err != nil {
			t.Fatal(err)
		}
		var now struct{ State struct{ Status string } }
		err = json.NewDecoder(resp.Body).Decode(&now)
		resp.Body.Close()
		if err != nil || now.State.Status == "paused" {
			t.Errorf("after the unpause it is %q, %v", now.State.Status, err)
		}
		if code := d.Docker("wait", "web"); code != "3" {
			t.Errorf("it ended with %s", code)
		}
	}
}

// A signal thaws a paused container, as in Docker. The answer must not be followed by
// a container that is shown as paused.
func TestSignalledContainerIsNotShownAsPausedAfterTheAnswer(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(t, nil))
	c := d.HTTP()
	var names []string
	for i := range 6 {
		names = append(names, fmt.Sprint("web", i))
		d.Docker("run", "-d", "--name", names[i], image, "sh", "-c", "trap : USR1; while :; do sleep 1; done")
	}
	post := func(path string) {
		resp, err := c.Post("http://d/containers/"+path, "", nil)
		if err != nil {
			t.Error(err)
			return
		}
		resp.Body.Close()
		if resp.StatusCode != 204 {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
	var clients sync.WaitGroup
	for _, name := range names {
		clients.Go(func() {
			for range 40 {
				post(name + "/pause")
				post(name + "/kill?signal=USR1")
				resp, err := c.Get("http://d/containers/" + name + "/json")
				if err != nil {
					t.Error(err)
					return
				}
				var now struct{ State struct{ Status string } }
				err = json.NewDecoder(resp.Body).Decode(&now)
				resp.Body.Close()
				if err != nil || now.State.Status != "running" {
					t.Errorf("after the signal %s is %q, %v", name, now.State.Status, err)
					return
				}
			}
		})
	}
	clients.Wait()
}
