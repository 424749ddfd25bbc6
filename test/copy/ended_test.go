// SPDX-License-Identifier: Apache-2.0

package copy

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
	"holdfast/test/kit"
)

// Between the end of a process and the record of it there is nothing to copy from.
// A copy of that moment waits for the record, as nobody can know when to try
// again.
func TestCopyFromAContainerThatHasJustEndedWaitsForTheRecordOfItsEnd(t *testing.T) {
	t.Parallel()
	d := live(t)
	id := d.Docker("run", "-d", "--name", "web", image, "sh", "-c", "echo kept >/file; sleep 1000")
	var st proto.State
	b, err := os.ReadFile(d.ExecRoot + "/shim/" + id + "/" + proto.StateFile)
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	if err != nil || st.Pid == 0 || st.ShimPid == 0 {
		t.Fatalf("%v: %s", err, b)
	}
	d.Docker("exec", "web", "sh", "-c", "until [ -s /file ]; do usleep 1000; done")
	// The shim can't record anything.
	if err := unix.Kill(st.ShimPid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume := func() { unix.Kill(st.ShimPid, unix.SIGCONT) }
	defer resume()
	fd, err := unix.PidfdOpen(st.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	if err := kit.WaitReadable(fd, patience); err != nil {
		t.Fatal(err)
	}
	ask := func(within time.Duration) (int, error) {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://d/containers/web/archive?path=/file", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := d.HTTP().Do(req)
		if err != nil {
			return 0, err
		}
		resp.Body.Close()
		return resp.StatusCode, nil
	}
	if code, err := ask(300 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("before the end is recorded the copy was answered with %d, %v", code, err)
	}
	resume()
	if code, err := ask(patience); code != http.StatusOK {
		t.Errorf("the copy was answered with %d, %v", code, err)
	}
}
