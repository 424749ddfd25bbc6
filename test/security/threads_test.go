// SPDX-License-Identifier: Apache-2.0

package security

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"holdfast/test/kit"
)

// A Go program makes a thread when all others are in system calls that block, and keeps
// it. In a shim whatever waits for a process, a stream, a client or a signal waits in the
// poller; what blocks are short calls on files. How many of these meet at once has a bound
// that use does not move, so neither do the threads.
const (
	mostThreads = 24
	// moreThreads is by how much the later half of the use may raise what the first half
	// has brought about.
	moreThreads = 3
)

// TestThreadsOfAShimHaveABound uses one shim in all ways at once, again and again.
func TestThreadsOfAShimHaveABound(t *testing.T) {
	const waves, each = 6, 20
	t.Parallel()
	d := live(t)
	d.Docker("run", "-d", "-i", "--name", "box", "-p", "127.0.0.1::80", "--log-opt", "max-size=1m", "--log-opt", "max-file=2",
		"--health-interval", "100ms", "--health-cmd", "echo checked", image, "sh", "-c",
		"trap : USR1; while :; do seq 1000; usleep 50000; done & while :; do sleep 1; done")
	w := watchShim(t, d, "box")
	var counts []int
	for range waves {
		useInAllWays(t, d, each)
		_, threads, _ := w.now()
		counts = append(counts, threads)
	}
	t.Logf("threads before: %d, after each wave: %v", w.threads, counts)
	half, last := counts[waves/2-1], counts[waves-1]
	if last > mostThreads || last > half+moreThreads {
		t.Errorf("a shim of %d threads has %d after %d waves and %d after %d", w.threads, half, waves/2, last, waves)
	}
	d.Docker("rm", "-f", "box")
}

// useInAllWays uses the container box by so many clients of each kind.
func useInAllWays(t *testing.T, d *kit.Daemon, each int) {
	t.Helper()
	ctx, end := context.WithCancel(context.Background())
	var long, short sync.WaitGroup
	for range each / 4 {
		for _, args := range [][]string{{"logs", "-f", "--tail", "10", "box"}, {"attach", "--sig-proxy=false", "--no-stdin", "box"}, {"wait", "box"}} {
			long.Go(func() {
				cmd := d.DockerCommand(ctx, args...)
				cmd.Stdout = io.Discard
				cmd.Run() // until it is killed
			})
		}
	}
	post := func(path, body string) string {
		r, err := d.HTTP().Post("http://h"+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Errorf("%s: %v", path, err)
			return ""
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil || r.StatusCode >= http.StatusBadRequest {
			t.Errorf("%s: %s %s %v", path, r.Status, b, err)
		}
		return string(b)
	}
	for i := range each {
		short.Go(func() {
			exec := d.CreateExec("box", fmt.Sprintf(`{"AttachStdin":true,"AttachStdout":true,"AttachStderr":true,"Tty":%v,"Cmd":["echo","out"]}`, i%2 == 0))
			s := takeOver(t, d, "/exec/"+exec+"/start", fmt.Sprintf(`{"Detach":false,"Tty":%v}`, i%2 == 0))
			s.all(t)
			s.Close()
		})
		short.Go(func() {
			post("/exec/"+d.CreateExec("box", `{"Cmd":["true"]}`)+"/start", `{"Detach":true}`)
			post("/containers/box/kill?signal=USR1", "")
			post("/containers/box/update", fmt.Sprintf(`{"CpuShares":%d}`, 100+i))
		})
	}
	short.Wait()
	for range 2 {
		post("/containers/box/pause", "")
		post("/containers/box/unpause", "")
	}
	end()
	long.Wait()
}
