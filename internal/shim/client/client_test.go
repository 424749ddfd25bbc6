// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFilesOfADeadShim(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadState(dir); !errdefs.IsNotFound(err) {
		t.Errorf("no state: %v", err)
	}
	if entries, err := ReadJournal(dir, 0); err != nil || entries != nil {
		t.Errorf("no journal: %v, %v", entries, err)
	}
	state := filepath.Join(dir, proto.StateFile)
	for _, tt := range []struct {
		name, text string
		is         func(error) bool
		says       string
	}{
		{"cut short", `{"schema":1,"id":"c`, errdefs.IsDataLoss, "cut short"},
		{"empty", ``, errdefs.IsDataLoss, "cut short"},
		{"other JSON", `{}`, errdefs.IsDataLoss, "schema"},
		{"wrong types", `{"schema":1,"exitCode":"x"}`, errdefs.IsDataLoss, "exitCode"},
		{"newer", `{"schema":2,"id":{"x":1}}`, errdefs.IsFailedPrecondition, "newer release"},
	} {
		write(t, state, tt.text)
		if _, err := ReadState(dir); !tt.is(err) || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), state) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	write(t, filepath.Join(dir, proto.ExitFile), `{"schema":1,"id":"c1","exitCode":3,"newField":true}`)
	if st, err := ReadExit(dir); err != nil || st.ExitCode != 3 {
		t.Errorf("exit record: %+v, %v", st, err)
	}
	journal := filepath.Join(dir, proto.JournalFile)
	write(t, journal, `{"seq":1,"action":"start"}`+"\n"+`{"seq":2,"action":"die"}`+"\n"+`{"seq":3,"ac`)
	if entries, err := ReadJournal(dir, 1); err != nil || len(entries) != 1 || entries[0].Action != "die" {
		t.Errorf("torn journal: %+v, %v", entries, err)
	}
	write(t, journal, "garbage\n"+`{"seq":2,"action":"die"}`+"\n")
	if entries, err := ReadJournal(dir, 0); !errdefs.IsDataLoss(err) || len(entries) != 1 {
		t.Errorf("damaged journal: %+v, %v", entries, err)
	}
}

func TestGoneIsToldFromUnreachable(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, filepath.Join(dir, "none"), ""); !errdefs.IsNotFound(err) {
		t.Errorf("no directory: %v", err)
	}
	if _, err := Dial(ctx, dir, ""); !errdefs.IsNotFound(err) {
		t.Errorf("no socket: %v", err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, proto.SocketFile))
	if err != nil {
		t.Fatal(err)
	}
	// It listens but never answers. This does not mean that the shim has exited.
	if _, err := Dial(ctx, dir, ""); err == nil || errdefs.IsNotFound(err) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if _, err := Dial(context.Background(), dir, ""); !errdefs.IsNotFound(err) {
		t.Errorf("nobody listens: %v", err)
	}
}

// peer plays the shim at the other end of a connection.
func peer(t *testing.T) (*Shim, *proto.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, err := proto.NewConn(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	b, err := proto.NewConn(fds[1])
	if err != nil {
		t.Fatal(err)
	}
	s := newShim(a)
	t.Cleanup(func() { s.Close(); b.Close() })
	return s, b
}

func TestErrorsCarryTheirKindAndTheShimsWords(t *testing.T) {
	s, shim := peer(t)
	kinds := []struct {
		kind string
		is   func(error) bool
	}{
		{proto.KindUnimplemented, errdefs.IsNotImplemented}, {proto.KindInvalid, errdefs.IsInvalidArgument},
		{proto.KindNotFound, errdefs.IsNotFound}, {proto.KindConflict, errdefs.IsConflict},
		{proto.KindRuntime, errdefs.IsUnknown}, {proto.KindInternal, errdefs.IsInternal}, {"from a newer shim", errdefs.IsInternal},
	}
	go func() {
		for _, k := range kinds {
			var m proto.Message
			if shim.Receive(&m) != nil {
				return
			}
			shim.Send(proto.Message{ID: m.ID, Error: &proto.Error{Kind: k.kind, Message: "the words", ExitCode: 127}})
		}
	}()
	for _, k := range kinds {
		_, err := s.State(context.Background())
		var perr *proto.Error
		if !k.is(err) || err.Error() != "the words" || !errors.As(err, &perr) || perr.ExitCode != 127 {
			t.Errorf("%s: %v", k.kind, err)
		}
	}
}

func TestContextEndsTheWaitingAndALateAnswerHarmsNobody(t *testing.T) {
	s, shim := peer(t)
	ctx, cancel := context.WithCancel(context.Background())
	got := make(chan error, 1)
	go func() { _, err := s.Stop(ctx, proto.Stop{}); got <- err }()
	var late proto.Message
	if err := shim.Receive(&late); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("stop: %v", err)
	}
	shim.Send(proto.Message{ID: late.ID})
	go func() {
		var m proto.Message
		shim.Receive(&m)
		shim.Send(proto.Message{ID: m.ID, Result: []byte(`{"schema":1,"status":"running"}`)})
	}()
	if st, err := s.State(context.Background()); err != nil || st.Status != "running" {
		t.Errorf("state: %+v, %v", st, err)
	}
}

func TestDoneComesAfterTheLastEvent(t *testing.T) {
	s, shim := peer(t)
	const n = 500
	go func() {
		var m proto.Message
		shim.Receive(&m)
		shim.Send(proto.Message{ID: m.ID})
		for i := range uint64(n) {
			shim.Send(proto.Message{Event: &proto.Event{Entry: proto.Entry{Seq: i + 1}}})
		}
		shim.Close()
	}()
	var seen []uint64
	if err := s.Subscribe(context.Background(), 0, func(e proto.Event) { seen = append(seen, e.Seq) }); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	if len(seen) != n || seen[0] != 1 || seen[n-1] != n {
		t.Errorf("%d events before Done", len(seen))
	}
	if _, err := s.State(context.Background()); !errdefs.IsUnavailable(err) {
		t.Errorf("call afterwards: %v", err)
	}
	if err := s.Subscribe(context.Background(), 0, func(proto.Event) {}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second subscription: %v", err)
	}
}

func TestWhatAShimTellsWithItsHelloWaitsForTheSubscriber(t *testing.T) {
	s, shim := peer(t)
	go func() {
		var heard, hello, follow proto.Message
		shim.Receive(&heard)
		shim.Receive(&hello)
		shim.Receive(&follow)
		// A shim may answer in another order.
		shim.Send(proto.Message{ID: follow.ID})
		shim.Send(proto.Message{Event: &proto.Event{Entry: proto.Entry{Seq: 1}}})
		shim.Send(proto.Message{Event: &proto.Event{Entry: proto.Entry{Seq: 2}}})
		shim.Send(proto.Message{ID: hello.ID, Result: []byte(`{"version":1,"state":{"seq":2}}`)})
		var m proto.Message
		shim.Receive(&m)
		shim.Send(proto.Message{Event: &proto.Event{Entry: proto.Entry{Seq: 3}}})
		shim.Close()
	}()
	if err := s.greetAndFollow(context.Background(), daemon("")); err != nil {
		t.Fatal(err)
	}
	if seq := s.Hello().State.Seq; seq != 2 {
		t.Errorf("the hello has entry %d, want 2", seq)
	}
	var seen []uint64
	if err := s.Subscribe(context.Background(), 1, func(e proto.Event) { seen = append(seen, e.Seq) }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(seen, []uint64{2}) {
		t.Errorf("events %d when the subscription was made, want 2", seen)
	}
	s.State(context.Background())
	<-s.Done()
	if !slices.Equal(seen, []uint64{2, 3}) {
		t.Errorf("events %d, want 2 and 3", seen)
	}
}

func TestSubscriptionToAShimThatHasGoneFails(t *testing.T) {
	s, shim := peer(t)
	go func() {
		var heard, hello, follow proto.Message
		shim.Receive(&heard)
		shim.Receive(&hello)
		shim.Receive(&follow)
		shim.Send(proto.Message{ID: hello.ID, Result: []byte(`{}`)})
		shim.Send(proto.Message{ID: follow.ID})
		shim.Close()
	}()
	if err := s.greetAndFollow(context.Background(), daemon("")); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	if err := s.Subscribe(context.Background(), 0, func(proto.Event) {}); !errdefs.IsUnavailable(err) {
		t.Errorf("subscription: %v", err)
	}
}
