// SPDX-License-Identifier: Apache-2.0

package storm

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/test/storm/model"
)

// operations do what a client can do.
var operations map[model.Kind]func(*storm, *slot, model.Op)

func init() {
	operations = map[model.Kind]func(*storm, *slot, model.Op){
		model.Create: (*storm).create,
		model.Start:  verb("start", "/start"),
		model.Stop: func(s *storm, l *slot, o model.Op) {
			s.change(l, o, "POST", fmt.Sprintf("/stop?t=%d", o.Time), nil, "stop", "-t", strconv.Itoa(o.Time))
		},
		model.Restart: func(s *storm, l *slot, o model.Op) {
			s.change(l, o, "POST", fmt.Sprintf("/restart?t=%d", o.Time), nil, "restart", "-t", strconv.Itoa(o.Time))
		},
		model.Kill: func(s *storm, l *slot, o model.Op) {
			sig := []string{"KILL", "TERM", "USR1"}[o.N%3]
			s.change(l, o, "POST", "/kill?signal="+sig, nil, "kill", "-s", sig)
		},
		model.Pause:   verb("pause", "/pause"),
		model.Unpause: verb("unpause", "/unpause"),
		model.Rename:  (*storm).rename,
		model.Update: func(s *storm, l *slot, o model.Op) {
			n := 100 + o.N
			s.change(l, o, "POST", "/update", map[string]any{"CpuShares": n}, "update", "--cpu-shares", strconv.Itoa(n))
		},
		model.Remove: func(s *storm, l *slot, o model.Op) {
			if o.N == 0 {
				s.change(l, o, "DELETE", "?v=1", nil, "rm", "-v")
			} else {
				s.change(l, o, "DELETE", "?force=1&v=1", nil, "rm", "-f", "-v")
			}
		},
		model.Top:     read("/top"),
		model.Diff:    read("/changes"),
		model.Stats:   read("/stats?stream=0&one-shot=1"),
		model.Inspect: read("/json"),
		model.Export:  (*storm).export,
		model.Commit:  (*storm).commit,
		model.NetJoin: func(s *storm, l *slot, o model.Op) { s.net(l, o, "connect") },
		model.NetLeave: func(s *storm, l *slot, o model.Op) {
			s.net(l, o, "disconnect")
		},
		model.Exec: (*storm).exec, model.ExecTTY: (*storm).execTTY, model.ExecDetach: (*storm).execDetach, model.ExecLong: (*storm).execLong,
		model.Attach: (*storm).attach, model.Follow: (*storm).follow, model.Wait: (*storm).wait, model.Logs: (*storm).logs,
		model.CopyIn: (*storm).copyIn, model.CopyOut: (*storm).copyOut, model.List: (*storm).list, model.Port: (*storm).port,
		model.NetCreate: (*storm).netCreate, model.NetRemove: (*storm).netRemove, model.VolCreate: (*storm).volCreate, model.VolRemove: (*storm).volRemove,
		model.Prune: (*storm).prune, model.PruneVol: (*storm).pruneVolumes, model.PruneNet: (*storm).pruneNetworks, model.PruneImg: (*storm).pruneImages,
		model.Pull: (*storm).pull, model.Push: (*storm).push, model.Contend: (*storm).contend,
		model.Info: func(s *storm, l *slot, o model.Op) { s.plain(l, o, "GET", "/info", nil, 200) },
	}
}

// verb is an operation without arguments.
func verb(command, path string) func(*storm, *slot, model.Op) {
	return func(s *storm, l *slot, o model.Op) { s.change(l, o, "POST", path, nil, command) }
}

// change does an operation on the slot's container over the API or by a command
// line.
func (s *storm) change(l *slot, o model.Op, method, path string, body any, command ...string) {
	if o.CLI == 0 {
		s.act(l, o, method, "/containers/ID"+path, body)
		return
	}
	id, gen := l.who()
	if id == "" {
		return
	}
	a, _, stderr, _, took := s.cli(l, o, nil, append(command, id)...)
	s.tell(l, o, gen, a, stderr, took)
	s.look(l)
}

func (l *slot) who() (id string, gen int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.id, l.gen
}

func (l *slot) upsets() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.upset
}

// spec is what the container is certainly made with. ok is false where that is
// not known.
func (l *slot) spec() (model.Spec, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.model.Spec(l.gen), l.id != "" && l.model.All(func(st model.State) bool { return st.Status != model.Absent && st.Gen == l.gen })
}

func (l *slot) is(of ...model.Status) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.model.Is(of...)
}

func (s *storm) create(l *slot, o model.Op) {
	l.mu.Lock()
	alt := !l.model.All(func(st model.State) bool { return st.Status == model.Absent || !st.Alt })
	if alt {
		l.mu.Unlock()
		return // the name is free, and the slot is not
	}
	spec := *o.Spec
	gen := l.model.NewGen(spec)
	before := s.slots[place{o.Client, max(0, o.Slot-1)}]
	l.mu.Unlock()
	host := map[string]any{
		"RestartPolicy": map[string]any{"Name": string(spec.Policy), "MaximumRetryCount": map[model.Policy]int{model.OnFailure: 2}[spec.Policy]},
		"AutoRemove":    spec.Remove, "NetworkMode": "bridge",
	}
	volume := map[string]any{"Type": "volume", "Target": "/state"}
	if spec.Volume {
		volume["Source"] = "vol-" + l.at.String()
		volume["VolumeOptions"] = map[string]any{"Labels": map[string]string{"storm": "keep"}}
	}
	host["Mounts"] = []any{volume}
	conf := map[string]any{
		"Image": image, "Tty": spec.TTY, "OpenStdin": true,
		"Cmd":    []string{"player", l.at.String(), strconv.Itoa(spec.Life), strconv.Itoa(spec.Code), strconv.FormatBool(spec.Stubborn)},
		"Labels": map[string]string{"slot": l.at.String(), "client": strconv.Itoa(o.Client), "gen": strconv.Itoa(gen)}, "HostConfig": host,
	}
	if spec.Port {
		conf["ExposedPorts"] = map[string]any{"80/tcp": struct{}{}}
		host["PortBindings"] = map[string]any{"80/tcp": []any{map[string]string{"HostIp": "127.0.0.1"}}}
	}
	if spec.Health {
		conf["Healthcheck"] = map[string]any{"Test": []string{"CMD", "true"}, "Interval": 500e6, "Retries": 3}
	}
	if spec.Network {
		host["NetworkMode"] = network(o.Client)
	}
	host["IpcMode"] = "shareable"
	other := "container:nothing"
	if before != l {
		if id, _ := before.who(); id != "" {
			other = "container:" + id
		}
	}
	for mode, joins := range map[string]bool{"NetworkMode": spec.Joins, "PidMode": spec.JoinsPid, "IpcMode": spec.JoinsIpc} {
		if joins {
			host[mode] = other
		}
	}
	began := time.Now()
	r := s.ask("POST", "/containers/create?name="+l.at.String(), conf, time.Duration(o.Vanish)*time.Millisecond, 0)
	a := s.answer(o, l.at, began, r)
	if a.Result == model.OK {
		var made struct{ Id string }
		if err := json.Unmarshal(r.body, &made); err != nil || made.Id == "" {
			s.violate("create", "%v: %s", err, r.body)
		}
		l.mu.Lock()
		l.id, l.gen, l.damaged = made.Id, gen, false
		l.mu.Unlock()
		s.know(l, made.Id, gen)
	}
	s.tell(l, o, gen, a, string(r.body), r.took)
	s.look(l)
}

func (s *storm) rename(l *slot, o model.Op) {
	name := l.at.String()
	if o.N%2 == 1 {
		name += "-alt"
	}
	if o.CLI == 0 {
		s.act(l, o, "POST", "/containers/ID/rename?name="+name, nil)
		return
	}
	id, gen := l.who()
	if id == "" {
		return
	}
	a, _, stderr, _, took := s.cli(l, o, nil, "rename", id, name)
	if a.Result == model.Conflict {
		a.Result = model.Refused
	}
	s.tell(l, o, gen, a, stderr, took)
	s.look(l)
}

// read is an operation that changes nothing.
func read(path string) func(*storm, *slot, model.Op) {
	return func(s *storm, l *slot, o model.Op) { s.act(l, o, "GET", "/containers/ID"+path, nil) }
}

func (s *storm) export(l *slot, o model.Op) {
	r, ok := s.act(l, o, "GET", "/containers/ID/export", nil)
	if !ok {
		return
	}
	found := false
	for t := tar.NewReader(bytes.NewReader(r.body)); ; {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			s.violate("export", "%s: %v after %d bytes", l.at, err, len(r.body))
			return
		}
		found = found || strings.TrimPrefix(h.Name, "./") == "bin/player"
	}
	if !found {
		s.violate("export", "%s: the program is not in %d bytes", l.at, len(r.body))
	}
}

func (s *storm) commit(l *slot, o model.Op) {
	ref := fmt.Sprintf("storm-c%d:n%d", o.Client, o.N%4)
	id, _ := l.who()
	repo, tag, _ := strings.Cut(ref, ":")
	r, ok := s.act(l, o, "POST", "/commit?container="+id+"&repo="+repo+"&tag="+tag, map[string]any{})
	if !ok {
		return
	}
	var made struct{ Id string }
	if err := json.Unmarshal(r.body, &made); err != nil || made.Id == "" {
		s.violate("commit", "%s: %v: %s", l.at, err, r.body)
		return
	}
	if r, ok := s.insist("GET", "/images/"+ref+"/json", nil); ok && r.code != 200 {
		s.violate("commit", "%s was made (%s) and is not there: %d %s", ref, made.Id, r.code, r.body)
	}
}

func (s *storm) net(l *slot, o model.Op, what string) {
	name := "bridge"
	if o.N%2 == 1 {
		name = network(o.Client)
	}
	id, gen := l.who()
	if id == "" {
		return
	}
	if o.CLI == 0 {
		s.act(l, o, "POST", "/networks/"+name+"/"+what, map[string]any{"Container": id})
		return
	}
	a, _, stderr, _, took := s.cli(l, o, nil, "network", what, name, id)
	s.tell(l, o, gen, a, stderr, took)
	s.look(l)
}

// unsteady reports whether the container may end by itself, or be disturbed by a
// fault, while an exec runs in it.
func (s *storm) unsteady(l *slot, began time.Time) bool {
	spec, known := l.spec()
	l.mu.Lock()
	dying := !l.model.All(func(st model.State) bool { return !st.Dying }) || l.model.Pending(l.gen)
	l.mu.Unlock()
	return !known || spec.Life > 0 || spec.JoinsPid || dying || s.touched(l.at, began, append(deaths, model.KillShim, model.KillRuntime, model.KillInit, model.KillContainer, model.FreezeShim, model.NoFiles, model.NoFilesShim,
		model.FillDisk, model.FillInodes, model.MountGone)...)
}

// exec runs a command with input and compares output and exit code.
func (s *storm) exec(l *slot, o model.Op) {
	id, gen := l.who()
	if id == "" {
		return
	}
	word := fmt.Sprintf("word%d", o.N)
	want := o.N % 200
	script := fmt.Sprintf("read x; echo got $x; echo warn >&2; exit %d", want)
	began := time.Now()
	unsteady := s.unsteady(l, began)
	if o.CLI > 0 {
		a, stdout, stderr, code, took := s.cli(l, o, strings.NewReader(word+"\n"), "exec", "-i", id, "sh", "-c", script)
		unsteady = unsteady || s.unsteady(l, began)
		switch {
		case a.Result == model.Lost:
		case code == want && stdout == "got "+word+"\n":
			a.Result = model.OK
		case unsteady:
			a.Result, a.Disturbed = model.Refused, true
		case a.Result == model.OK || code == want && code != 1 && code != 125 && code != 126:
			s.violate("exec", "%s ended with %d and %q %q", l.at, code, stdout, stderr)
			return
		}
		s.tell(l, o, gen, a, stderr, took)
		s.look(l)
		return
	}
	r := s.ask("POST", "/containers/"+id+"/exec", map[string]any{
		"AttachStdin": true, "AttachStdout": true, "AttachStderr": true, "Cmd": []string{"sh", "-c", script},
	}, 0, 0)
	a := s.answer(o, l.at, began, r)
	var made struct{ Id string }
	if a.Result != model.OK || json.Unmarshal(r.body, &made) != nil {
		a.Disturbed = a.Disturbed || unsteady
		s.tell(l, o, gen, a, string(r.body), r.took)
		s.look(l)
		return
	}
	stdout, stderr, err := s.execStart(made.Id, word+"\n", o.Vanish)
	unsteady = unsteady || s.unsteady(l, began) || o.Vanish > 0
	words := fmt.Sprintf("%q %q %v", stdout, stderr, err)
	if unsteady {
		// What came through is right, as far as it came.
		if !strings.HasPrefix("got "+word+"\n", stdout) && !strings.HasPrefix(stdout, "OCI runtime exec failed") {
			s.violate("exec", "%s gave %s", l.at, words)
		}
		a.Result = model.Lost
	} else if err != nil || stdout != "got "+word+"\n" || stderr != "warn\n" {
		s.violate("exec", "%s gave %s", l.at, words)
	} else {
		var st struct {
			Running  bool
			ExitCode *int
		}
		r, ok := s.insist("GET", "/exec/"+made.Id+"/json", nil)
		if ok && !s.unsteady(l, began) && (json.Unmarshal(r.body, &st) != nil || st.Running || st.ExitCode == nil || *st.ExitCode != want) {
			s.violate("exec", "%s: its stream has ended, and it is %d %s, want %d", l.at, r.code, r.body, want)
		}
	}
	if a.Result == model.Lost {
		s.note("%s exec %s", l.at, words)
	} else {
		s.tell(l, o, gen, a, words, time.Since(began))
	}
	s.look(l)
}

// execStart joins an exec over the raw socket.
func (s *storm) execStart(id, input string, vanish int) (stdout, stderr string, err error) {
	limit := bound
	if vanish > 0 {
		limit = time.Duration(vanish) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, err := s.dial(ctx)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	late, _ := ctx.Deadline()
	c.SetDeadline(late)
	body := `{"Detach":false,"Tty":false}`
	fmt.Fprintf(c, "POST /exec/%s/start HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: %d\r\n\r\n%s", id, len(body), body)
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		return "", "", err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		b, _ := io.ReadAll(resp.Body)
		return "", "", fmt.Errorf("%s: %s", resp.Status, b)
	}
	if _, err := io.WriteString(c, input); err != nil {
		return "", "", err
	}
	return demultiplex(br)
}

// demultiplex separates the two streams of an attached process.
func demultiplex(r io.Reader) (stdout, stderr string, err error) {
	var out, errs strings.Builder
	for {
		var h [8]byte
		if _, err := io.ReadFull(r, h[:]); err == io.EOF {
			return out.String(), errs.String(), nil
		} else if err != nil {
			return out.String(), errs.String(), err
		}
		to := &out
		if h[0] == 2 {
			to = &errs
		}
		if _, err := io.CopyN(to, r, int64(binary.BigEndian.Uint32(h[4:]))); err != nil {
			return out.String(), errs.String(), err
		}
	}
}

func (s *storm) execTTY(l *slot, o model.Op) {
	id, gen := l.who()
	if id == "" {
		return
	}
	began := time.Now()
	unsteady := s.unsteady(l, began)
	r := s.ask("POST", "/containers/"+id+"/exec", map[string]any{"Tty": true, "AttachStdout": true, "AttachStdin": true, "Cmd": []string{"sh", "-c", "tty; exit 4"}}, 0, 0)
	a := s.answer(o, l.at, began, r)
	a.Disturbed = a.Disturbed || unsteady
	s.tell(l, o, gen, a, string(r.body), r.took)
	var made struct{ Id string }
	if a.Result == model.OK && json.Unmarshal(r.body, &made) == nil {
		got, err := s.execRaw(made.Id)
		if !s.unsteady(l, began) && !unsteady && (err != nil || !strings.HasPrefix(got, "/dev/pts/")) {
			s.violate("exec", "%s: with a terminal: %q %v", l.at, got, err)
		}
	}
	s.look(l)
}

func (s *storm) execRaw(id string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	c, err := s.dial(ctx)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(bound))
	body := `{"Detach":false,"Tty":true}`
	fmt.Fprintf(c, "POST /exec/%s/start HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: %d\r\n\r\n%s", id, len(body), body)
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		b, _ := io.ReadAll(resp.Body)
		return "", fmt.Errorf("%s: %s", resp.Status, b)
	}
	b, err := io.ReadAll(br)
	return string(b), err
}

func (s *storm) execDetach(l *slot, o model.Op) {
	id, gen := l.who()
	if id == "" {
		return
	}
	began := time.Now()
	unsteady := s.unsteady(l, began)
	word := fmt.Sprintf("d%d-%d", o.N, began.UnixNano())
	if o.CLI == 0 {
		o.CLI = 1
	}
	a, _, stderr, code, took := s.cli(l, o, nil, "exec", "-d", id, "sh", "-c", "echo "+word+" >>/state/words")
	a.Disturbed = a.Disturbed || unsteady || s.unsteady(l, began)
	s.tell(l, o, gen, a, fmt.Sprintf("%d %s", code, stderr), took)
	s.look(l)
}

// execLong runs a command as long as the container lives, or its client does.
func (s *storm) execLong(l *slot, o model.Op) {
	id, _ := l.who()
	if id == "" || !l.is(model.Running) {
		return
	}
	upset := l.upsets()
	s.background(l, o, func(ctx context.Context) {
		began := time.Now()
		stdout, _, _ := s.command(ctx, o, nil, "exec", id, "sh", "-c", "i=0; while echo $i; do i=$((i+1)); usleep 50000; done")
		// Its client does other things meanwhile, such as to stop the container.
		if strings.HasPrefix(stdout, "OCI runtime exec failed") && (s.unsteady(l, began) || l.upsets() != upset) {
			return
		}
		i := 0
		for line := range strings.Lines(stdout) {
			if strings.TrimSpace(line) != strconv.Itoa(i) && strings.HasSuffix(line, "\n") {
				s.violate("exec", "%s: line %d of a long exec is %q", l.at, i, line)
				return
			}
			i++
		}
	})
}

func (s *storm) attach(l *slot, o model.Op) {
	id, _ := l.who()
	spec, known := l.spec()
	if id == "" || !known || !l.is(model.Running) {
		return
	}
	s.background(l, o, func(ctx context.Context) {
		args := []string{"attach", "--sig-proxy=false"}
		if spec.TTY || o.N%2 == 0 {
			args = append(args, "--no-stdin")
		}
		var in io.Reader
		if !spec.TTY && o.N%2 == 1 {
			in = strings.NewReader(fmt.Sprintf("word%d\n", o.N))
		}
		stdout, _, _ := s.command(ctx, o, in, append(args, id)...)
		s.ordered(l, "attach", stdout, true)
	})
}

func (s *storm) follow(l *slot, o model.Op) {
	id, _ := l.who()
	if id == "" {
		return
	}
	s.background(l, o, func(ctx context.Context) {
		stdout, _, _ := s.command(ctx, o, nil, "logs", "-f", "--tail", strconv.Itoa(o.N%100), id)
		s.ordered(l, "logs -f", stdout, true)
	})
}

func (s *storm) logs(l *slot, o model.Op) {
	id, _ := l.who()
	if id == "" {
		return
	}
	began := time.Now()
	if o.CLI == 0 {
		o.CLI = 1
	}
	a, stdout, stderr, _, _ := s.cli(l, o, nil, "logs", id)
	switch {
	case a.Result == model.OK:
		s.ordered(l, "logs", stdout, false)
	case a.Result == model.Refused && !s.touched(l.at, began):
		s.violate("logs", "%s: %s", l.at, stderr)
	}
}

// ordered checks lines of the player. The last may be cut.
func (s *storm) ordered(l *slot, what, text string, part bool) {
	s.mu.Lock()
	full := s.full
	s.mu.Unlock()
	if full {
		return // lines are dropped while the disk is full
	}
	if err := inOrder(strings.ReplaceAll(text, "\r", ""), part); err != nil {
		s.violate("lines", "%s of %s: %v", what, l.at, err)
	}
}

func inOrder(text string, part bool) error {
	run, at, ended := -1, -1, false
	for line := range strings.Lines(text) {
		if !strings.HasSuffix(line, "\n") {
			return nil
		}
		line = strings.TrimSuffix(line, "\n")
		bad := func() error { return fmt.Errorf("after run %d line %d comes %q", run, at, line) }
		f := strings.Fields(line)
		n := 0
		if len(f) >= 2 {
			n, _ = strconv.Atoi(f[0])
		}
		switch {
		case len(f) == 1 && strings.HasPrefix(line, "word"), len(f) == 0:
			// the echo of a terminal
		case n == 0:
			return bad()
		case f[1] == "start":
			// A run that was killed before it could write anything is no loss.
			if run >= 0 && (n <= run || n > run+20) || !part && run < 0 && n < 1 {
				return bad()
			}
			run, at, ended = n, 0, false
		case f[1] == "in":
			if n != run && !(part && run < 0) || ended {
				return bad()
			}
		case f[1] == "end":
			m, _ := strconv.Atoi(f[2])
			if run >= 0 && (n != run || m != at || ended) {
				return bad()
			}
			run, at, ended = n, m, true
		default:
			m, err := strconv.Atoi(f[1])
			switch {
			case err != nil:
				return bad()
			case run < 0 && part:
				run, at = n, m
			case n != run || m != at+1 || ended:
				return bad()
			}
			at = m
		}
	}
	return nil
}

func (s *storm) wait(l *slot, o model.Op) {
	id, _ := l.who()
	if id == "" || !l.is(model.Running, model.Paused) {
		return
	}
	s.background(l, o, func(ctx context.Context) {
		began := time.Now()
		stdout, stderr, code := s.command(ctx, o, nil, "wait", id)
		if ctx.Err() != nil {
			return
		}
		n, err := strconv.Atoi(strings.TrimSpace(stdout))
		if code != 0 || err != nil {
			if !s.touched(everywhere, began, deaths...) && !strings.Contains(strings.ToLower(stderr), "no such container") {
				s.violate("wait", "%s: %d %q %q", l.at, code, stdout, stderr)
			}
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.waits = append(s.waits, waited{id, n})
	})
}

func (s *storm) copyIn(l *slot, o model.Op) {
	id, gen := l.who()
	if id == "" {
		return
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	body := bytes.Repeat([]byte("x"), o.N*20)
	w.WriteHeader(&tar.Header{Name: fmt.Sprintf("file%d", o.N), Mode: 0o644, Size: int64(len(body)), Typeflag: tar.TypeReg})
	w.Write(body)
	w.Close()
	began := time.Now()
	r := s.ask("PUT", "/containers/"+id+"/archive?path=/state", &b, time.Duration(o.Vanish)*time.Millisecond, 0)
	a := s.answer(o, l.at, began, r)
	s.tell(l, o, gen, a, string(r.body), r.took)
	spec, known := l.spec()
	if a.Result == model.OK && known && spec.Volume {
		l.mu.Lock()
		l.words = append(l.words, fmt.Sprintf("file%d", o.N))
		l.mu.Unlock()
	}
	s.look(l)
}

func (s *storm) copyOut(l *slot, o model.Op) {
	r, ok := s.act(l, o, "GET", "/containers/ID/archive?path=/bin/player", nil)
	if !ok {
		return
	}
	t := tar.NewReader(bytes.NewReader(r.body))
	h, err := t.Next()
	if err == nil {
		_, err = io.Copy(io.Discard, t)
	}
	if err != nil || h.Name != "player" {
		s.violate("cp", "%s: %v %v of %d bytes", l.at, h, err, len(r.body))
	}
}

func (s *storm) list(l *slot, o model.Op) {
	r, ok := s.insist("GET", "/containers/json?all=1", nil)
	if !ok {
		return
	}
	var list []struct {
		Id    string
		Names []string
	}
	if err := json.Unmarshal(r.body, &list); err != nil {
		s.violate("list", "%v: %s", err, r.body)
		return
	}
	names, ids := map[string]string{}, map[string]bool{}
	for _, c := range list {
		if ids[c.Id] {
			s.violate("list", "%s is listed twice", c.Id)
		}
		ids[c.Id] = true
		for _, n := range c.Names {
			if other, ok := names[n]; ok {
				s.violate("list", "%s and %s are called %s", other, c.Id, n)
			}
			names[n] = c.Id
		}
	}
	id, _ := l.who()
	if _, known := l.spec(); known && l.is(model.Created, model.Running, model.Paused) && !ids[id] && l.still(id) {
		if spec, _ := l.spec(); !spec.Remove {
			s.violate("lost", "%s (%s) is not listed", l.at, id)
		}
	}
}

func (l *slot) still(id string) bool {
	now, _ := l.who()
	return now == id
}

// port connects to the published port, which the container that has it answers.
func (s *storm) port(l *slot, o model.Op) {
	c, ok := s.look(l)
	spec, known := l.spec()
	l.mu.Lock()
	damaged := l.damaged
	steady := l.model.All(func(st model.State) bool { return st.Status == model.Running && !st.Dying && st.Nets != 0 })
	l.mu.Unlock()
	if !ok || !known || !spec.Port || spec.Life > 0 || spec.JoinsPid || damaged || !steady {
		return
	}
	began := time.Now()
	err := s.answers(l, c)
	if err == nil || s.touched(l.at, began.Add(-time.Second), model.KillContainer, model.LinkGone, model.BridgeDown, model.FlushRules) {
		return
	}
	// What a client had asked for and left may have been done meanwhile, such as a stop.
	now, ok := s.look(l)
	same := now.ID == c.ID && now.State.StartedAt == c.State.StartedAt && now.State.Status == c.State.Status &&
		slices.Equal(slices.Sorted(maps.Keys(now.NetworkSettings.Networks)), slices.Sorted(maps.Keys(c.NetworkSettings.Networks)))
	if ok && same {
		s.violate("port", "%s: %v", l.at, err)
	}
}

// answers connects to the published port until the container answers there, or
// the time is over in which it must.
func (s *storm) answers(l *slot, c inspected) error {
	bindings := c.NetworkSettings.Ports["80/tcp"]
	if len(bindings) == 0 {
		return fmt.Errorf("no port is published: %+v", c.NetworkSettings)
	}
	addr := net.JoinHostPort("127.0.0.1", bindings[0].HostPort)
	late := time.Now().Add(20 * time.Second)
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		got, err := hello(addr)
		switch {
		case err == nil && strings.HasPrefix(got, l.at.String()+" "):
			return nil
		case err == nil && got != "":
			return fmt.Errorf("%s is answered by %q", addr, got)
		case time.Now().After(late):
			return fmt.Errorf("%s does not answer: %q %v", addr, got, err)
		}
		<-again.C
	}
}

func hello(addr string) (string, error) {
	c, err := net.DialTimeout("tcp", addr, 3*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(3 * time.Second))
	b, err := io.ReadAll(c)
	return string(b), err
}

// plain is a request that concerns no container, and must be answered with one of
// the codes.
func (s *storm) plain(l *slot, o model.Op, method, path string, body any, codes ...int) (reply, bool) {
	began := time.Now()
	r := s.ask(method, path, body, time.Duration(o.Vanish)*time.Millisecond, 0)
	a := s.answer(o, l.at, began, r)
	s.note("%s %s: %d %s", l.at, o, r.code, shorten(string(r.body)))
	if a.Result == model.Lost || a.Disturbed && r.code >= 500 {
		return r, false
	}
	for _, c := range codes {
		if r.code == c {
			return r, true
		}
	}
	s.violate("wrong answer", "%s %s %s: %d %s", o, method, path, r.code, shorten(string(r.body)))
	return r, false
}

func (s *storm) netCreate(l *slot, o model.Op) {
	s.plain(l, o, "POST", "/networks/create", map[string]any{"Name": fmt.Sprintf("extra%d", o.Client), "Labels": map[string]string{"client": strconv.Itoa(o.Client)}}, 201, 409)
}

func (s *storm) netRemove(l *slot, o model.Op) {
	s.plain(l, o, "DELETE", fmt.Sprintf("/networks/extra%d", o.Client), nil, 204, 404)
}

func (s *storm) volCreate(l *slot, o model.Op) {
	s.plain(l, o, "POST", "/volumes/create", map[string]any{"Name": fmt.Sprintf("extra%d", o.Client), "Labels": map[string]string{"client": strconv.Itoa(o.Client)}}, 201)
}

func (s *storm) volRemove(l *slot, o model.Op) {
	s.plain(l, o, "DELETE", fmt.Sprintf("/volumes/extra%d", o.Client), nil, 204, 404)
}

// prune removes the stopped containers of the client's slots.
func (s *storm) prune(l *slot, o model.Op) {
	// One slot alone, so that the judgement stays exact.
	id, gen := l.who()
	if id == "" {
		return
	}
	filters := url.QueryEscape(fmt.Sprintf(`{"label":["slot=%s"]}`, l.at))
	began := time.Now()
	r := s.ask("POST", "/containers/prune?filters="+filters, nil, time.Duration(o.Vanish)*time.Millisecond, 0)
	a := s.answer(o, l.at, began, r)
	s.tell(l, o, gen, a, string(r.body), r.took)
	s.look(l)
}

func (s *storm) pruneVolumes(l *slot, o model.Op) {
	filters := fmt.Sprintf(`{"label":["client=%d"],"all":["true"]}`, o.Client)
	if o.N%2 == 0 {
		filters = `{}` // the anonymous ones, of which some are in use
	}
	s.plain(l, o, "POST", "/volumes/prune?filters="+url.QueryEscape(filters), nil, 200, 409)
}

func (s *storm) pruneNetworks(l *slot, o model.Op) {
	s.plain(l, o, "POST", "/networks/prune?filters="+url.QueryEscape(fmt.Sprintf(`{"label":["client=%d"]}`, o.Client)), nil, 200, 409)
}

func (s *storm) pruneImages(l *slot, o model.Op) {
	s.plain(l, o, "POST", "/images/prune", nil, 200, 409)
}

func (s *storm) pull(l *slot, o model.Op) {
	r, ok := s.plain(l, o, "POST", "/images/create?fromImage="+url.QueryEscape(s.registry.Host+"/storm")+"&tag=base", nil, 200)
	if ok && !strings.Contains(string(r.body), `"error"`) {
		if r, ok := s.insist("GET", "/images/"+s.registry.Host+"/storm:base/json", nil); ok && r.code != 200 {
			s.violate("pull", "the image was pulled and is not there: %d %s", r.code, r.body)
		}
	} else if ok && !s.touched(everywhere, time.Now().Add(-r.took)) {
		s.violate("pull", "%s", shorten(string(r.body)))
	}
}

func (s *storm) push(l *slot, o model.Op) {
	ref := fmt.Sprintf("%s/storm-c%d", s.registry.Host, o.Client)
	if _, ok := s.plain(l, o, "POST", "/images/"+image+"/tag?repo="+url.QueryEscape(ref)+"&tag=t", nil, 201); !ok {
		return
	}
	if o.CLI == 0 {
		o.CLI = 1
	}
	began := time.Now()
	a, _, stderr, _, took := s.cli(l, o, nil, "push", ref+":t")
	s.note("%s %s: %s %s %s", l.at, o, a.Result, shorten(stderr), took)
	if a.Result != model.OK && a.Result != model.Lost && !s.touched(everywhere, began) {
		s.violate("push", "%s", stderr)
	}
}

// contend creates a container of a name that all clients want.
func (s *storm) contend(l *slot, o model.Op) {
	name := fmt.Sprintf("shared%d", o.N%model.Shared)
	r, ok := s.plain(l, o, "POST", "/containers/create?name="+name, map[string]any{"Image": image, "Labels": map[string]string{"storm": "shared"}}, 201, 409)
	var made struct{ Id string }
	if !ok || r.code != 201 || json.Unmarshal(r.body, &made) != nil {
		return
	}
	o.Vanish = 0
	s.plain(l, o, "DELETE", "/containers/"+made.Id, nil, 204)
}
