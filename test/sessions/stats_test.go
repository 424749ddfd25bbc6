// SPDX-License-Identifier: Apache-2.0

package sessions

import (
	"encoding/json"
	"errors"
	"io"
	"testing"

	"holdfast/test/kit"
)

// A stream of statistics can't go on without the daemon, and must not look
// complete. What is asked for anew is answered.
func TestStatsAreCutByTheEndOfTheDaemon(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{LiveRestore: true})
	d.Load(image, kit.Busybox(t, nil))
	d.Holdfast("run", "-d", "--name", "box", image, "sleep", "9999")
	resp, err := d.HTTP().Get("http://h/containers/box/stats")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	samples := json.NewDecoder(resp.Body)
	var s struct{ Name string }
	if err := samples.Decode(&s); err != nil || s.Name != "/box" {
		t.Fatalf("%+v %v", s, err)
	}
	d.Kill9()
	for err == nil {
		err = samples.Decode(&s)
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the stream ends with %v", err)
	}
	if got := d.Holdfast("stats", "--no-stream", "--format", "{{.Name}}", "box"); got != "box" {
		t.Errorf("without a daemon: %q", got)
	}
	d.Start()
	if got := d.Holdfast("stats", "--no-stream", "--format", "{{.Name}}", "box"); got != "box" {
		t.Errorf("of the next daemon: %q", got)
	}
}
