// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"slices"
	"syscall"
	"testing"

	"holdfast/internal/shim/client"
	"holdfast/internal/shim/proto"
)

// TestSignalThawsAPausedContainer: the thaw is reported before the end that the
// signal causes. For SIGKILL no thaw is reported, because the container can't
// handle it.
func TestSignalThawsAPausedContainer(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(s *client.Shim) error
		code int
		want []string
	}{
		{"stop", func(s *client.Shim) error { _, err := s.Stop(ctx(t), proto.Stop{Timeout: 20}); return err }, 3, []string{"start", "unpause", "die", "exited"}},
		{"kill with the stop signal", func(s *client.Shim) error {
			return s.Kill(ctx(t), proto.Kill{Signal: int(syscall.SIGTERM), Manual: true})
		}, 3, []string{"start", "unpause", "die", "exited"}},
		{"any other signal", func(s *client.Shim) error {
			return s.Kill(ctx(t), proto.Kill{Signal: int(syscall.SIGUSR1)})
		}, 4, []string{"start", "unpause", "die", "exited"}},
		{"SIGKILL", func(s *client.Shim) error {
			return s.Kill(ctx(t), proto.Kill{Signal: int(syscall.SIGKILL), Manual: true})
		}, 137, []string{"start", "die", "exited"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBox(t, "trap 'exit 3' TERM; trap 'exit 4' USR1; echo ready; while :; do read x </tmp/never & wait; done")
			b.fifo("never")
			s := b.spawn()
			ev := b.subscribe(s, 0)
			c := b.attach(s, proto.Attach{Stdout: true, Raw: true})
			if _, err := s.Start(ctx(t)); err != nil {
				t.Fatal(err)
			}
			c.until("ready\n")
			if _, err := s.Pause(ctx(t)); err != nil {
				t.Fatal(err)
			}
			if err := tt.end(s); err != nil {
				t.Fatal(err)
			}
			if st := b.ended(s); st.ExitCode != tt.code {
				t.Errorf("exit code %d, want %d", st.ExitCode, tt.code)
			}
			ev.action(proto.ActionExited)
			if got := ev.actions(); !slices.Equal(got, tt.want) {
				t.Errorf("events %v, want %v", got, tt.want)
			}
		})
	}
}
