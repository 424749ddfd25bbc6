// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/moby/moby/api/types/jsonstream"

	"holdfast/internal/image"
)

// TestEventsOfAnImageCarryItsLabels: clients filter events by label. The event
// of a removed image has no labels.
func TestEventsOfAnImageCarryItsLabels(t *testing.T) {
	var events []string
	s := newStore(t, func(o *image.Options) {
		o.OnEvent = func(action, id, name string, attrs map[string]string) {
			if name == id {
				name = "ID"
			}
			events = append(events, fmt.Sprintf("%s %s %s", action, name, attrs["kind"]))
		}
	})
	ctx := context.Background()
	importNamed(t, s, "app:1", "one", "LABEL kind=test")
	must(t, s.Tag(ctx, "app:1", "app:2"))
	var saved bytes.Buffer
	must(t, s.Save(ctx, []string{"app"}, nil, func() io.Writer { return &saved }))
	must(t, s.Load(ctx, &saved, nil, func(jsonstream.Message) {}))
	if _, err := s.Remove(ctx, "app:1", false, true, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(ctx, "app:2", false, true, nil); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"tag app:1 test", "import ID test", "tag app:2 test",
		"save ID test", "save ID test", "load ID test", "load ID test",
		"untag app:1 ", "untag app:2 ", "delete ID ",
	}
	if !slices.Equal(events, want) {
		t.Errorf("%q\nwant %q", events, want)
	}
}
