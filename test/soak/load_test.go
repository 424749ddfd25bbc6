// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
)

// load starts all that goes on beside the containers.
func (h *house) load() {
	each := func(keep func(*box) bool, most int, run func(*box)) {
		for i, b := range h.those(keep) {
			if i < most {
				h.users.Go(func() { run(b) })
			}
		}
	}
	each(func(b *box) bool { return steady(b) && b.n%10 == 3 }, 8, h.follow)
	each(func(b *box) bool { return b.rate >= 500 }, 2, h.follow)
	each(func(b *box) bool { return !steady(b) }, 8, h.followRuns)
	each(func(b *box) bool { return steady(b) && b.n%10 == 4 }, 8, h.attach)
	each(func(b *box) bool { return b.tty && steady(b) }, 2, h.attach)
	each(func(b *box) bool { return !steady(b) }, 8, h.await)
	h.users.Go(h.listen)
	h.users.Go(h.watchStats)
	h.users.Go(h.execs)
	h.users.Go(h.raceExecs)
	h.users.Go(h.vanish)
	h.users.Go(h.churn)
}

// lines checks the lines of a stream until it ends.
func (h *house) lines(b *box, what string, r io.Reader) {
	var seq sequence
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if bad := seq.next(s.Text()); bad != "" {
			h.wrong("%s of %s: %s", what, b.name, bad)
		}
	}
	h.mu.Lock()
	h.done["lines read by "+what] += seq.lines
	h.mu.Unlock()
}

// plain returns a container's output without the frames around it.
func plain(b *box, r io.Reader) io.Reader {
	if b.tty {
		return r
	}
	out, in := io.Pipe()
	go func() {
		_, err := stdcopy.StdCopy(in, in, r)
		in.CloseWithError(err)
	}()
	return out
}

// stream opens a stream, checks it, and expects that it goes on to the soak's end.
func (h *house) stream(b *box, what string, open func(ctx context.Context) (io.ReadCloser, error)) {
	for h.ctx.Err() == nil {
		began := time.Now()
		r, err := open(h.ctx)
		if err != nil {
			if h.ctx.Err() == nil && !h.disturbed(began) {
				h.wrong("%s of %s: %v", what, b.name, err)
			}
			h.pause(time.Second)
			continue
		}
		h.count(what)
		stop := context.AfterFunc(h.ctx, func() { r.Close() })
		h.lines(b, what, plain(b, r))
		stop()
		r.Close()
		if h.ctx.Err() == nil && steady(b) {
			h.wrong("%s of %s ended after %s", what, b.name, time.Since(began).Round(time.Second))
			h.pause(time.Second)
		}
	}
}

func (h *house) follow(b *box) {
	h.stream(b, "logs -f", func(ctx context.Context) (io.ReadCloser, error) {
		return h.api.ContainerLogs(ctx, b.id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Follow: true, Tail: "5"})
	})
}

// followRuns follows a container whose runs end. The log may end with a run, and is
// then followed again.
func (h *house) followRuns(b *box) {
	h.stream(b, "logs -f over restarts", func(ctx context.Context) (io.ReadCloser, error) {
		h.pause(time.Second)
		return h.api.ContainerLogs(ctx, b.id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Follow: true, Tail: "5"})
	})
}

// hijacked closes the connection of a stream.
type hijacked struct {
	io.Reader
	client.HijackedResponse
}

func (c hijacked) Close() error { c.HijackedResponse.Close(); return nil }

func (c hijacked) Read(b []byte) (int, error) { return c.Reader.Read(b) }

func (h *house) attach(b *box) {
	h.stream(b, "attach", func(ctx context.Context) (io.ReadCloser, error) {
		r, err := h.api.ContainerAttach(ctx, b.id, client.ContainerAttachOptions{Stream: true, Stdout: true, Stderr: true, Stdin: b.n%20 == 4})
		if err != nil {
			return nil, err
		}
		// The terminal may be in the middle of a line.
		if b.tty {
			_, err = r.Reader.ReadString('\n')
		}
		return hijacked{r.Reader, r.HijackedResponse}, err
	})
}

// await waits for the end of each run.
func (h *house) await(b *box) {
	for h.ctx.Err() == nil {
		began := time.Now()
		w := h.api.ContainerWait(h.ctx, b.id, client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
		select {
		case r := <-w.Result:
			h.count("wait")
			if r.StatusCode != int64(b.code) {
				h.wrong("wait for %s gave %d %+v, want %d", b.name, r.StatusCode, r.Error, b.code)
			}
		case err := <-w.Error:
			if h.ctx.Err() == nil && !h.disturbed(began) {
				h.wrong("wait for %s: %v", b.name, err)
			}
			h.pause(time.Second)
		}
	}
}

// listen counts the starts and ends of containers, each once.
func (h *house) listen() {
	since, seen := fmt.Sprintf("%d.000000000", h.began.Add(-time.Hour).Unix()), map[string]bool{}
	for h.ctx.Err() == nil {
		r := h.api.Events(h.ctx, client.EventsListOptions{Since: since, Filters: client.Filters{}.Add("type", "container").Add("event", "start", "die").Add("label", "soak=box")})
		for open := true; open; {
			select {
			case m := <-r.Messages:
				key := fmt.Sprint(m.TimeNano, m.Actor.ID, m.Action)
				h.mu.Lock()
				switch {
				case seen[key]: // asked for again
				case m.Action == events.ActionStart:
					h.starts[m.Actor.ID]++
				case m.Action == events.ActionDie:
					h.dies[m.Actor.ID]++
				}
				h.done["events"]++
				h.mu.Unlock()
				seen[key] = true
				since = fmt.Sprintf("%d.%09d", m.TimeNano/1e9, m.TimeNano%1e9)
			case <-r.Err:
				open = false
			}
		}
		h.count("events, connections")
		h.pause(time.Second)
	}
}

// watchStats follows the figures of one container after the other.
func (h *house) watchStats() {
	for i := 0; h.ctx.Err() == nil; i++ {
		b := h.boxes[i%len(h.boxes)]
		ctx, cancel := context.WithTimeout(h.ctx, min(20*time.Second, h.length/5))
		r, err := h.api.ContainerStats(ctx, b.id, client.ContainerStatsOptions{Stream: true})
		if err == nil {
			for d := json.NewDecoder(r.Body); ; {
				var s container.StatsResponse
				if d.Decode(&s) != nil {
					break
				}
				h.count("stats")
				if steady(b) && s.PidsStats.Current == 0 && h.ctx.Err() == nil {
					h.wrong("stats of %s: no processes", b.name)
				}
			}
			r.Body.Close()
		}
		cancel()
		h.pause(time.Second)
	}
}

// exec makes an exec.
func (h *house) exec(b *box, tty bool, command ...string) (id string, ok bool) {
	err := h.patiently(h.ctx, func(ctx context.Context) error {
		made, err := h.api.ExecCreate(ctx, b.id, client.ExecCreateOptions{TTY: tty, AttachStdin: true, AttachStdout: true, AttachStderr: true, Cmd: command})
		id = made.ID
		return err
	})
	if err != nil && h.ctx.Err() == nil && steady(b) {
		h.wrong("exec in %s: %v", b.name, err)
	}
	return id, err == nil
}

// ended waits until an exec has ended, and returns its code.
func (h *house) ended(b *box, id string) (code int, ok bool) {
	for late := time.Now().Add(bound); ; {
		var r client.ExecInspectResult
		err := h.patiently(h.ctx, func(ctx context.Context) (err error) {
			r, err = h.api.ExecInspect(ctx, id, client.ExecInspectOptions{})
			return err
		})
		switch {
		case h.ctx.Err() != nil:
			return 0, false
		case cerrdefs.IsNotFound(err):
			// It ended, or its container did, and was forgotten.
			return 0, false
		case err != nil:
			h.wrong("inspect an exec in %s: %v", b.name, err)
			return 0, false
		case !r.Running:
			return r.ExitCode, true
		case time.Now().After(late):
			h.wrong("an exec in %s still runs", b.name)
			return 0, false
		}
		h.pause(200 * time.Millisecond)
	}
}

// execs makes one exec after the other, of all kinds, in containers that never end.
func (h *house) execs() {
	boxes := h.those(steady)
	kinds := []struct {
		name string
		run  func(*box, int)
	}{
		{"exec with input", h.execInput},
		{"exec on a terminal", h.execTerminal},
		{"exec detached", h.execDetached},
		{"exec whose client vanishes", func(b *box, i int) { h.execVanish(b, false, "cat") }},
		{"exec on a terminal whose client vanishes", func(b *box, i int) { h.execVanish(b, true, "sleep", "1") }},
		{"exec by a command line that is killed", func(b *box, i int) { h.execKilled(b) }},
	}
	for i := 0; h.ctx.Err() == nil; i++ {
		k := kinds[i%len(kinds)]
		k.run(boxes[i%len(boxes)], i)
		h.count(k.name)
		h.pause(min(500*time.Millisecond, h.length/100))
	}
}

func (h *house) execInput(b *box, i int) {
	began := time.Now()
	id, ok := h.exec(b, false, "sh", "-c", fmt.Sprintf("read x; echo got $x; echo warn >&2; exit %d", i%100))
	if !ok {
		return
	}
	r, err := h.api.ExecAttach(h.ctx, id, client.ExecAttachOptions{})
	if err != nil {
		if !h.disturbed(began) && h.ctx.Err() == nil {
			h.wrong("exec in %s: %v", b.name, err)
		}
		return
	}
	defer r.Close()
	defer context.AfterFunc(h.ctx, r.Close)()
	r.Conn.SetDeadline(time.Now().Add(bound))
	fmt.Fprintf(r.Conn, "word%d\n", i)
	var out, errs bytes.Buffer
	_, err = stdcopy.StdCopy(&out, &errs, r.Reader)
	if h.ctx.Err() != nil {
		return
	}
	if err != nil || out.String() != fmt.Sprintf("got word%d\n", i) || errs.String() != "warn\n" {
		h.wrong("exec in %s gave %q %q %v", b.name, &out, &errs, err)
		return
	}
	if code, ok := h.ended(b, id); ok && code != i%100 {
		h.wrong("exec in %s ended with %d, want %d", b.name, code, i%100)
	}
}

func (h *house) execTerminal(b *box, _ int) {
	began := time.Now()
	id, ok := h.exec(b, true, "sh", "-c", "tty; exit 4")
	if !ok {
		return
	}
	r, err := h.api.ExecAttach(h.ctx, id, client.ExecAttachOptions{TTY: true})
	if err != nil {
		if !h.disturbed(began) && h.ctx.Err() == nil {
			h.wrong("exec on a terminal in %s: %v", b.name, err)
		}
		return
	}
	defer r.Close()
	defer context.AfterFunc(h.ctx, r.Close)()
	r.Conn.SetDeadline(time.Now().Add(bound))
	got, err := io.ReadAll(r.Reader)
	if h.ctx.Err() == nil && (err != nil || !strings.HasPrefix(string(got), "/dev/pts/")) {
		h.wrong("exec on a terminal in %s gave %q %v", b.name, got, err)
	}
}

func (h *house) execDetached(b *box, _ int) {
	began := time.Now()
	id, ok := h.exec(b, false, "sh", "-c", "exit 5")
	if !ok {
		return
	}
	if _, err := h.api.ExecStart(h.ctx, id, client.ExecStartOptions{Detach: true}); err != nil {
		if !h.disturbed(began) && h.ctx.Err() == nil {
			h.wrong("exec detached in %s: %v", b.name, err)
		}
		return
	}
	if code, ok := h.ended(b, id); ok && code != 5 {
		h.wrong("exec detached in %s ended with %d", b.name, code)
	}
}

// execVanish leaves an exec. The process sees the end of its input, or ends by itself.
func (h *house) execVanish(b *box, tty bool, command ...string) {
	id, ok := h.exec(b, tty, command...)
	if !ok {
		return
	}
	r, err := h.api.ExecAttach(h.ctx, id, client.ExecAttachOptions{TTY: tty})
	if err != nil {
		return
	}
	fmt.Fprintln(r.Conn, "a word")
	h.pause(100 * time.Millisecond)
	r.Close()
	h.ended(b, id)
}

func (h *house) execKilled(b *box) {
	ctx, cancel := context.WithTimeout(h.ctx, 300*time.Millisecond)
	defer cancel()
	cmd := h.d.HoldfastCommand(ctx, "exec", "-i", b.id, "cat")
	// Its input is open until it is killed.
	if in, err := cmd.StdinPipe(); err == nil && cmd.Start() == nil {
		_ = cmd.Wait() // it is killed
		in.Close()
	}
}

// raceExecs runs execs that last until their container's run ends.
func (h *house) raceExecs() {
	boxes := h.those(func(b *box) bool { return !steady(b) })
	for i := 0; h.ctx.Err() == nil && len(boxes) > 0; i++ {
		b := boxes[i%len(boxes)]
		if id, ok := h.exec(b, i%2 == 0, "sleep", "100000"); ok {
			if r, err := h.api.ExecAttach(h.ctx, id, client.ExecAttachOptions{TTY: i%2 == 0}); err == nil {
				stop := context.AfterFunc(h.ctx, r.Close)
				r.Conn.SetDeadline(time.Now().Add(b.life + bound))
				if _, err := io.Copy(io.Discard, r.Reader); h.ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
					h.wrong("an exec in %s goes on after its run", b.name)
				}
				stop()
				r.Close()
				h.count("exec until the container ends")
			}
		}
		h.pause(time.Second)
	}
}

// vanish opens streams and leaves them.
func (h *house) vanish() {
	for i := 0; h.ctx.Err() == nil; i++ {
		b := h.boxes[i*7%len(h.boxes)]
		ctx, cancel := context.WithTimeout(h.ctx, 200*time.Millisecond)
		switch i % 4 {
		case 0:
			if r, err := h.api.ContainerLogs(ctx, b.id, client.ContainerLogsOptions{ShowStdout: true, Follow: true}); err == nil {
				<-ctx.Done()
				r.Close()
			}
		case 1:
			if r, err := h.api.ContainerAttach(ctx, b.id, client.ContainerAttachOptions{Stream: true, Stdout: true, Stdin: true}); err == nil {
				<-ctx.Done()
				r.Close()
			}
		case 2:
			w := h.api.ContainerWait(ctx, b.id, client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
			select {
			case <-w.Result:
			case <-w.Error:
			}
		case 3:
			e := h.api.Events(ctx, client.EventsListOptions{})
			for open := true; open; {
				select {
				case <-e.Messages:
				case <-e.Err:
					open = false
				}
			}
		}
		cancel()
		h.count("clients that vanish")
		h.pause(min(700*time.Millisecond, h.length/60))
	}
}

// churn makes containers that end soon and are removed, with a port and an anonymous
// volume each.
func (h *house) churn() {
	for h.ctx.Err() == nil {
		began := time.Now()
		made, err := h.api.ContainerCreate(h.ctx, client.ContainerCreateOptions{
			Config: &container.Config{
				Image: image, Cmd: []string{"player", "churn", "5", "1500", "0"}, Volumes: map[string]struct{}{"/data": {}},
				ExposedPorts: network.PortSet{network.MustParsePort("80/tcp"): {}},
			},
			HostConfig: &container.HostConfig{AutoRemove: true, PublishAllPorts: true},
		})
		if err == nil {
			_, err = h.api.ContainerStart(h.ctx, made.ID, client.ContainerStartOptions{})
		}
		if err != nil {
			if h.ctx.Err() == nil && !h.disturbed(began) {
				h.wrong("a container that ends soon: %v", err)
			}
			h.remove(made.ID)
		} else {
			h.gone(made.ID)
			h.count("run --rm")
		}
		if h.ctx.Err() != nil {
			h.leave(made.ID)
			return
		}
		h.pause(min(6*time.Second, h.length/20))
	}
}

// gone waits until a container was removed by itself.
func (h *house) gone(id string) {
	for late := time.Now().Add(bound); ; {
		err := h.patiently(h.ctx, func(ctx context.Context) error {
			_, err := h.api.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
			return err
		})
		switch {
		case h.ctx.Err() != nil || cerrdefs.IsNotFound(err):
			return
		case time.Now().After(late):
			h.wrong("container %.12s with --rm is still there: %v", id, err)
			return
		}
		h.pause(300 * time.Millisecond)
	}
}

// leave removes a container at the soak's end, or waits until it has removed itself.
func (h *house) leave(id string) {
	late := time.Now().Add(bound)
	for id != "" && time.Now().Before(late) {
		ctx, cancel := context.WithTimeout(context.Background(), bound)
		_, err := h.api.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		cancel()
		if err == nil || cerrdefs.IsNotFound(err) {
			return
		}
		<-time.After(100 * time.Millisecond)
	}
}

// remove removes what was made and perhaps not started.
func (h *house) remove(id string) {
	if id == "" {
		return
	}
	err := h.patiently(h.ctx, func(ctx context.Context) error {
		_, err := h.api.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		if cerrdefs.IsNotFound(err) || cerrdefs.IsConflict(err) {
			return nil
		}
		return err
	})
	if err != nil && h.ctx.Err() == nil {
		h.wrong("remove %.12s: %v", id, err)
	}
}
