// SPDX-License-Identifier: Apache-2.0

package truth

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/test/kit"
)

// coming makes things come and go until it is told to stop.
func coming(t *testing.T, d *kit.Daemon) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for _, commands := range [][][]string{
		{{"run", "-d", "--name", "comes", "-v", "/v", image, "sleep", "600"}, {"rm", "-fv", "comes"}},
		{{"run", "--rm", "--network", "net-comes", image, "true"}, {"network", "create", "net-comes"}, {"network", "rm", "net-comes"}},
		{{"volume", "create", "--label", "comes", "vol-comes"}, {"volume", "rm", "vol-comes"}},
		{{"commit", "stays", "image-comes:1"}, {"tag", "image-comes:1", "image-comes:2"}, {"rmi", "image-comes:1", "image-comes:2"}},
	} {
		all.Go(func() {
			for ctx.Err() == nil {
				for _, c := range commands {
					d.TryDocker(c...)
				}
			}
		})
	}
	return func() { cancel(); all.Wait() }
}

// TestAnswersAboutManyLeaveOutWhatHasGone: while containers, volumes, networks and
// images come and go, nothing that is about all of them, or removes what is unused,
// fails because of one that has gone meanwhile.
func TestAnswersAboutManyLeaveOutWhatHasGone(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	d.Docker("run", "-d", "--name", "stays", image, "sleep", "600")
	stop := coming(t, d)
	defer stop()

	ask := func(method, path string) {
		t.Helper()
		req, err := http.NewRequest(method, "http://holdfast/v1.51"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := d.HTTP().Do(req)
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK || err != nil {
			t.Errorf("%s %s: %s %s %v", method, path, resp.Status, body, err)
		}
	}
	gone := func(text string) bool {
		return strings.Contains(text, "No such") || strings.Contains(text, "not found") || strings.Contains(text, "no such")
	}
	rounds := 0
	for end := time.Now().Add(25 * time.Second); time.Now().Before(end); rounds++ {
		for _, path := range []string{
			"/containers/json?all=1&size=1", `/containers/json?all=1&filters={"network":["net-comes"],"volume":["vol-comes"]}`,
			"/images/json?all=1&shared-size=1&manifests=1&digests=1", `/images/json?filters={"dangling":["true"]}`,
			"/volumes", `/volumes?filters={"dangling":["true"]}`, `/volumes?filters={"label":["comes"]}`,
			"/networks", `/networks?filters={"dangling":["true"]}`,
			"/system/df", "/system/df?verbose=1", "/system/df?type=volume&type=container", "/info",
			"/containers/stays/json?size=1", "/containers/stays/top", "/containers/stays/stats?stream=0&one-shot=1", "/networks/bridge",
		} {
			ask(http.MethodGet, path)
		}
		if rounds%4 == 0 {
			for _, path := range []string{"/containers/prune", "/volumes/prune?filters={\"all\":[\"1\"]}", "/images/prune", "/networks/prune"} {
				ask(http.MethodPost, path)
			}
		}
	}
	if rounds < 3 {
		t.Errorf("%d rounds in that time", rounds)
	}

	// The command line asks for the list and then for each of it.
	for range 4 {
		for _, args := range [][]string{
			{"ps", "-a", "-s"}, {"images", "-a"}, {"volume", "ls"}, {"network", "ls"}, {"system", "df", "-v"},
			{"stats", "--no-stream", "--all"}, {"system", "prune", "-f", "--volumes"},
		} {
			if r := d.TryDocker(args...); r.Code != 0 || gone(r.Stderr) {
				t.Errorf("docker %s: %d %q", strings.Join(args, " "), r.Code, r.Stderr)
			}
		}
		// What is named and has gone is an error, but what is there is answered all
		// the same.
		r := d.TryDocker("inspect", "-f", "{{.Name}}", "comes", "stays", "vol-comes", "net-comes")
		if !strings.Contains(r.Stdout, "stays") || r.Code > 1 || strings.Contains(r.Stderr, "500") {
			t.Errorf("inspect of several: %+v", r)
		}
	}
	if strings.Contains(d.Log(), "an image is damaged") {
		t.Error("an image that was removed is called damaged")
	}
}
