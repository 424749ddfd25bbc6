// SPDX-License-Identifier: Apache-2.0

package event

import (
	"context"
	"testing"
	"time"
)

func TestSubscriptionGoesOnWithWhatAnotherProcessAppends(t *testing.T) {
	dir := t.TempDir()
	// Segments are small, so that the other process begins new ones and deletes
	// old ones.
	old := open(t, dir, 8<<10)
	put(t, old, numbered(0))
	sub := old.Subscribe(time.Time{}, time.Time{}, nil)
	defer sub.Close()
	put(t, old, numbered(1))
	if err := old.Follow(); err != nil {
		t.Fatal(err)
	}
	if put(t, old, numbered(99)) {
		t.Error("a journal that only follows has recorded an event")
	}
	next := open(t, dir, 8<<10)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for i := 1; i <= 200; i++ {
		if i > 1 {
			put(t, next, numbered(i))
		}
		m, err := sub.Next(ctx)
		if err != nil || m.Actor.ID != numbered(i).Actor.ID {
			t.Fatalf("event %d: %v %v", i, m.Actor.ID, err)
		}
	}
	late := old.Subscribe(noon.Add(200*time.Second), time.Time{}, nil)
	defer late.Close()
	put(t, next, numbered(201))
	for i := 200; i <= 201; i++ {
		if m, err := late.Next(ctx); err != nil || m.Actor.ID != numbered(i).Actor.ID {
			t.Fatalf("event %d: %v %v", i, m.Actor.ID, err)
		}
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := sub.Next(ctx); err != ErrClosed {
		t.Errorf("after Close: %v", err)
	}
}

func TestLifeThatGoesOnAfterAFailedHandoverIsResumed(t *testing.T) {
	dir := t.TempDir()
	lives, err := OpenLives(dir)
	if err != nil {
		t.Fatal(err)
	}
	first, err := lives.Begin(Life{Pid: 1, Start: noon})
	if err != nil {
		t.Fatal(err)
	}
	if err := lives.End(EndHandover, noon.Add(time.Second), false); err != nil {
		t.Fatal(err)
	}
	if _, err := lives.Begin(Life{Pid: 2, Start: noon.Add(time.Second)}); err != nil {
		t.Fatal(err)
	}
	if err := lives.Resume(first.Number); err != nil {
		t.Fatal(err)
	}
	again, err := OpenLives(dir)
	if err != nil {
		t.Fatal(err)
	}
	if l := again.List(); len(l) != 1 || l[0].Pid != 1 || l[0].How != "" || !l[0].End.IsZero() {
		t.Errorf("%+v", l)
	}
	if err := again.Resume(7); err == nil {
		t.Error("a life that does not exist was resumed")
	}
}
