// SPDX-License-Identifier: Apache-2.0

package differ

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/creack/pty"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"

	"holdfast/test/differ/catalogue"
	"holdfast/test/kit"
)

// tooLong bounds a step. If a step hangs on one side, that is a difference.
const tooLong = 45 * time.Second

// bases are the images that exist when an entry begins, by their names.
func bases(t testing.TB) map[string]v1.Image {
	return map[string]v1.Image{
		"busybox:latest": kit.Busybox(t, nil),
		// An image in which every field is set.
		"configured:latest": kit.Busybox(t, func(c *v1.Config) {
			c.User, c.WorkingDir = "app:extra", "/home/app"
			c.Env = append(c.Env, "COLOUR=blue", "EMPTY=")
			c.Entrypoint, c.Cmd = []string{"/bin/sh", "-c"}, []string{"echo hello from the image"}
			c.Labels = map[string]string{"com.example.kind": "test", "plain": ""}
			c.ExposedPorts = map[string]struct{}{"80/tcp": {}, "53/udp": {}}
			c.Volumes = map[string]struct{}{"/data": {}}
			c.StopSignal = "SIGUSR1"
		}),
		"healthy:latest": kit.Busybox(t, func(c *v1.Config) {
			c.Cmd = []string{"sleep", "1000"}
			c.Healthcheck = &v1.HealthConfig{Test: []string{"CMD-SHELL", "test ! -e /ill"}, Interval: 500 * time.Millisecond, Timeout: 5 * time.Second, Retries: 1}
		}),
	}
}

// side is one of the two engines.
type side struct {
	title    string // docker or holdfast
	d        *kit.Daemon
	ns       kit.Netns
	registry string
	client   *http.Client
	work     string // directory of the shell commands, new for each entry
	touched  bool   // the entry may change images
	base     map[string]v1.Image
	// baseIDs are the IDs of the base images. baseNames maps them, without
	// sha256:, to names.
	baseIDs   []string
	baseNames map[string]string
	programs  string // directory with the docker command
}

// startSides starts both engines.
func startSides(t *testing.T, base map[string]v1.Image) [2]*side {
	t.Helper()
	peer := filepath.Dir(kit.PeerProgram(t, "runc"))
	docker, err := exec.LookPath("docker")
	if err != nil {
		t.Fatalf("%v: run make tools", err)
	}
	config := map[string]any{"bip": "172.17.0.1/16", "live-restore": false}
	p := kit.StartPeer(t, kit.PeerOptions{Config: config})
	// Use the same name for the bridge, and the same runtime.
	ours := map[string]any{"bridge": "docker0"}
	for k, v := range config {
		ours[k] = v
	}
	// Sizes of folders depend on the file system.
	d := kit.New(t, kit.Options{Disk: true, Config: ours, Env: []string{"PATH=" + peer + ":" + os.Getenv("PATH")}})
	ns := kit.NewNetns(t)
	if err := ns.Run(d.TryStart); err != nil {
		t.Fatal(err)
	}
	sides := [2]*side{
		{title: "docker", d: p.Daemon, ns: p.Netns},
		{title: "holdfast", d: d, ns: ns},
	}
	for _, s := range sides {
		s.base, s.programs = base, filepath.Dir(docker)
		s.client = &http.Client{Transport: s.d.HTTP().Transport}
		if err := s.ns.Run(func() error { return s.startRegistry(t) }); err != nil {
			t.Fatal(err)
		}
		if err := s.clean(t); err != nil {
			t.Fatal(err)
		}
		s.baseNames = map[string]string{}
		for name := range base {
			id := s.imageID(name)
			s.baseIDs = append(s.baseIDs, id)
			s.baseNames[strings.TrimPrefix(id, "sha256:")] = name
		}
		sort.Strings(s.baseIDs)
	}
	return sides
}

// startRegistry starts a registry with team/app:1 and team/other:1, which has
// no image for this platform.
func (s *side) startRegistry(t *testing.T) error {
	r := kit.StartRegistry(t, nil)
	s.registry = r.Host
	app := kit.Busybox(t, func(c *v1.Config) { c.Cmd = []string{"echo", "this is app 1"} })
	tag, err := name.NewTag(r.Host+"/team/app:1", name.Insecure)
	if err != nil {
		return err
	}
	// The connection must be made in this thread's network namespace.
	return remote.Write(tag, app, remote.WithTransport(dialsIn(s.ns)))
}

// get requests a path of the API, for the harness itself.
func (s *side) get(path string, into any) error {
	resp, err := s.client.Get("http://engine" + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s: %s", path, resp.Status, b)
	}
	return json.Unmarshal(b, into)
}

func (s *side) delete(path string) error {
	req, err := http.NewRequest(http.MethodDelete, "http://engine"+path, nil)
	if err != nil {
		return err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if resp.StatusCode >= 300 && resp.StatusCode != http.StatusNotFound {
		return fmt.Errorf("%s: DELETE %s: %s: %s", s.title, path, resp.Status, b)
	}
	return nil
}

type (
	containerRow struct {
		ID    string `json:"Id"`
		Names []string
		State string
	}
	networkRow struct{ ID, Name string }
	volumeRow  struct{ Name string }
	imageRow   struct {
		ID          string `json:"Id"`
		RepoTags    []string
		RepoDigests []string
	}
)

func (s *side) containers() (all []containerRow, err error) {
	err = s.get("/containers/json?all=1", &all)
	return all, err
}

func (s *side) networks() (all []networkRow, err error) {
	err = s.get("/networks", &all)
	return all, err
}

func (s *side) volumes() ([]volumeRow, error) {
	var v struct{ Volumes []volumeRow }
	err := s.get("/volumes", &v)
	return v.Volumes, err
}

func (s *side) images() (all []imageRow, err error) {
	err = s.get("/images/json", &all)
	return all, err
}

func (s *side) imageID(name string) string {
	var i imageRow
	_ = s.get("/images/"+name+"/json", &i)
	return i.ID
}

func predefined(network string) bool {
	return network == "bridge" || network == "host" || network == "none"
}

// clean removes everything except the base images, and restores those.
func (s *side) clean(t testing.TB) error {
	var errs []error
	containers, err := s.containers()
	errs = append(errs, err)
	for _, c := range containers {
		errs = append(errs, s.delete("/containers/"+c.ID+"?force=1&v=1"))
	}
	networks, err := s.networks()
	errs = append(errs, err)
	for _, n := range networks {
		if !predefined(n.Name) {
			errs = append(errs, s.delete("/networks/"+n.ID))
		}
	}
	volumes, err := s.volumes()
	errs = append(errs, err)
	for _, v := range volumes {
		errs = append(errs, s.delete("/volumes/"+v.Name+"?force=1"))
	}
	if !s.touched && s.baseIDs != nil {
		return errors.Join(errs...)
	}
	images, err := s.images()
	errs = append(errs, err)
	have := map[string]bool{}
	for _, i := range images {
		for _, tag := range i.RepoTags {
			if _, ok := s.base[tag]; ok && (s.baseIDs == nil || s.baseNames[strings.TrimPrefix(i.ID, "sha256:")] == tag) {
				have[tag] = true
				continue
			}
			errs = append(errs, s.delete("/images/"+tag+"?force=1"))
		}
		if len(i.RepoTags) == 0 {
			errs = append(errs, s.delete("/images/"+i.ID+"?force=1"))
		}
	}
	for name, img := range s.base {
		if have[name] {
			continue
		}
		resp, err := s.client.Post("http://engine/images/load?quiet=1", "application/x-tar", kit.Archive(t, name, img))
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// images matches commands that may change images. Others need no look at the
// images, which is slow in dockerd.
var images = regexp.MustCompile(`image|load|pull|commit|import|tag|rmi|prune|push|save|REGISTRY`)

// outcome has all answers of a side to an entry.
type outcome struct {
	answers []catalogue.Answer
	known   *catalogue.Known
	// astray are steps that did not end as the entry says.
	astray []string
	err    error // error of the harness
}

// run runs the entry on the engine, collects what is left, and cleans up.
func (s *side) run(t testing.TB, e *catalogue.Entry) outcome {
	o := outcome{known: &catalogue.Known{Text: e.Text, IDs: map[string]string{}, Names: map[string]string{
		s.d.Root: "<root>", s.d.ID: "<engine>", s.registry: "<registry>",
	}}}
	var err error
	if s.work, err = os.MkdirTemp(s.d.Root, "work"); err != nil {
		o.err = err
		return o
	}
	defer os.RemoveAll(s.work)
	o.known.Names[s.work] = "<work>"
	s.touched = images.MatchString(e.Text)
	vars := map[string]string{"REGISTRY": s.registry, "WORK": s.work}
	since := time.Now()
	var last []byte
	for i, step := range e.Steps {
		place := fmt.Sprintf("step %d", i+1)
		add := func(what, text string) {
			o.answers = append(o.answers, catalogue.Answer{Place: place + " " + what, About: step.String(), Text: text})
		}
		ended := true
		switch step.Kind {
		case catalogue.Request:
			last, ended = s.request(step, vars, add)
		case catalogue.Pick:
			v, err := pick(last, step.Line)
			if err != nil {
				add("value", err.Error())
				ended = false
			}
			vars[step.Name] = v
		default:
			ended = s.shell(step, vars, add)
		}
		if ended == step.Fails {
			verb := "fails"
			if step.Fails {
				verb = "succeeds"
			}
			o.astray = append(o.astray, fmt.Sprintf("step %d %s: %s", i+1, verb, step.String()))
			if n := len(o.answers); n > 0 {
				o.astray = append(o.astray, "  "+strings.TrimSpace(o.answers[n-1].Text))
			}
		}
	}
	o.err = errors.Join(s.left(&o, since), s.clean(t))
	return o
}

// shell runs a step's command and reports whether its status was 0.
func (s *side) shell(step catalogue.Step, vars map[string]string, add func(what, text string)) bool {
	ctx, cancel := context.WithTimeout(context.Background(), tooLong)
	defer cancel()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		stdout, stderr, code := s.command(ctx, step, vars)
		if step.Kind == catalogue.Until && !step.Match.MatchString(stdout) && !step.Match.MatchString(stderr) && ctx.Err() == nil {
			select {
			case <-again.C:
			case <-ctx.Done():
			}
			continue
		}
		if step.Kind == catalogue.Keep {
			vars[step.Name] = strings.TrimSpace(stdout)
			stdout = ""
		}
		add("exit", code)
		add("stdout", stdout)
		add("stderr", stderr)
		return code == "0"
	}
}

func (s *side) command(ctx context.Context, step catalogue.Step, vars map[string]string) (stdout, stderr, code string) {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", step.Line)
	cmd.Dir = s.work
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "DOCKER_") && !strings.HasPrefix(v, "HOLDFAST_") && !strings.HasPrefix(v, "PATH=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "DOCKER_HOST="+s.d.Host, "DOCKER_CONFIG="+s.work+"/.docker", "HOME="+s.work, "DOCKER_CLI_HINTS=false",
		"SOCKET="+s.d.Socket, "PATH="+s.programs+":"+os.Getenv("PATH"), "TERM=xterm", "COLUMNS=80")
	for k, v := range vars {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	var out, errs bytes.Buffer
	var err error
	if step.Kind == catalogue.TTY {
		var f *os.File
		err = s.ns.Run(func() (err error) {
			f, err = pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 80})
			return err
		})
		if err == nil {
			var done sync.WaitGroup
			done.Go(func() { io.Copy(&out, f) })
			err = cmd.Wait()
			done.Wait()
			f.Close()
		}
	} else {
		cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err = s.ns.Run(cmd.Start); err == nil {
			err = cmd.Wait()
		}
	}
	switch {
	case ctx.Err() != nil:
		code = "took longer than " + tooLong.String()
	case cmd.ProcessState != nil:
		code = strconv.Itoa(cmd.ProcessState.ExitCode())
	default:
		code = err.Error()
	}
	return out.String(), errs.String(), code
}

// shown are the headers that are compared.
var shown = []string{"Content-Type", "Api-Version", "Docker-Experimental", "Ostype", "Location", "Allow", "X-Docker-Container-Path-Stat"}

// request sends a step's request. It returns the body, and whether the status
// means success.
func (s *side) request(step catalogue.Step, vars map[string]string, add func(what, text string)) ([]byte, bool) {
	expand := func(t string) string {
		for k, v := range vars {
			t = strings.ReplaceAll(t, "$"+k, v)
		}
		return t
	}
	ctx, cancel := context.WithTimeout(context.Background(), tooLong)
	defer cancel()
	body := []byte(expand(step.Body))
	if file, ok := strings.CutPrefix(step.Body, "@"); ok {
		var err error
		if body, err = os.ReadFile(filepath.Join(s.work, file)); err != nil {
			add("status", err.Error())
			return nil, false
		}
	}
	u, err := url.Parse("http://engine" + expand(step.Path))
	if err != nil {
		add("status", err.Error())
		return nil, false
	}
	req, err := http.NewRequestWithContext(ctx, step.Method, u.String(), bytes.NewReader(body))
	if err != nil {
		add("status", err.Error())
		return nil, false
	}
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range step.Headers {
		if h[1] == "" {
			req.Header.Del(h[0])
			continue
		}
		req.Header.Set(h[0], expand(h[1]))
	}
	resp, err := s.client.Do(req)
	if err != nil {
		add("status", err.Error())
		return nil, false
	}
	defer resp.Body.Close()
	if conn, ok := resp.Body.(interface{ CloseWrite() error }); ok && resp.StatusCode == http.StatusSwitchingProtocols {
		_ = conn.CloseWrite()
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	text := string(answer)
	if strings.Contains(resp.Header.Get("Content-Type"), "-stream") || strings.Contains(resp.Header.Get("Content-Type"), "x-tar") || !utf8.ValidString(text) {
		text = strconv.QuoteToASCII(text)
	}
	if err != nil {
		text += "\n" + err.Error()
	}
	var headers []string
	for _, h := range shown {
		for _, v := range resp.Header.Values(h) {
			headers = append(headers, h+": "+v)
		}
	}
	add("status", resp.Status)
	add("headers", strings.Join(headers, "\n"))
	add("body", text)
	return answer, resp.StatusCode < 400
}

// pick returns a field of a JSON object, such as .Id or .Warnings.
func pick(body []byte, path string) (string, error) {
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		return "", err
	}
	for key := range strings.SplitSeq(strings.TrimPrefix(path, "."), ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return "", fmt.Errorf("no %s in %s", path, body)
		}
		v = m[key]
	}
	return fmt.Sprint(v), nil
}

// left adds the inspect of the objects that the entry has left, and the events.
func (s *side) left(o *outcome, since time.Time) error {
	var errs []error
	k := o.known
	events, containers, err := s.settled(since)
	errs = append(errs, err)
	networks, err := s.networks()
	errs = append(errs, err)
	for _, n := range networks {
		k.IDs[n.ID] = "network " + n.Name
	}
	for _, c := range containers {
		if len(c.Names) > 0 {
			k.IDs[c.ID] = "container " + strings.TrimPrefix(c.Names[0], "/")
		}
	}
	for _, ev := range events {
		name := ev.Actor.Attributes["name"]
		if (ev.Type == "container" || ev.Type == "network") && name != "" && k.IDs[ev.Actor.ID] == "" {
			k.IDs[ev.Actor.ID] = ev.Type + " " + name
		}
	}
	var images []imageRow
	if s.touched {
		images, err = s.images()
		errs = append(errs, err)
	}
	for id, name := range s.baseNames {
		k.IDs[id] = "image " + name
	}
	for _, i := range images {
		names := slices.Clone(i.RepoTags)
		if len(names) == 0 {
			names = slices.Clone(i.RepoDigests)
		}
		if len(names) > 0 {
			sort.Strings(names)
			k.IDs[strings.TrimPrefix(i.ID, "sha256:")] = "image " + k.Line(names[0])
		}
	}
	// Names that the engine has generated.
	for id, name := range k.IDs {
		if word, ok := strings.CutPrefix(name, "container "); ok && !strings.Contains(k.Text, word) {
			k.Names[word] = "<random name>"
			k.IDs[id] = "container <random name>"
		}
	}
	inspect := func(kind, name, path string) {
		var raw json.RawMessage
		if err := s.get(path, &raw); err != nil {
			raw = json.RawMessage(strconv.Quote(err.Error()))
		}
		o.answers = append(o.answers, catalogue.Answer{Place: kind + " " + name, About: "inspect of what is left", Text: string(raw)})
	}
	for _, c := range containers {
		name := strings.TrimPrefix(k.IDs[c.ID], "container ")
		inspect("container", name, "/containers/"+c.ID+"/json")
	}
	for _, n := range networks {
		if !predefined(n.Name) {
			inspect("network", n.Name, "/networks/"+n.ID)
		}
	}
	volumes, err := s.volumes()
	errs = append(errs, err)
	for _, v := range volumes {
		inspect("volume", k.Line(v.Name), "/volumes/"+v.Name)
	}
	for _, i := range images {
		if !slices.Contains(s.baseIDs, i.ID) {
			inspect("image", strings.TrimPrefix(k.Line(strings.TrimPrefix(i.ID, "sha256:")), "image "), "/images/"+i.ID+"/json")
		}
	}
	made := map[string]bool{}
	// Events of one object are in order. Those of several objects may
	// interleave.
	lines := map[string][]string{}
	for _, ev := range events {
		if ev.Action == "create" {
			made[ev.Actor.ID] = true
		}
		// Docker sends this event after its answer, so it may belong to the
		// previous entry. It also sends it for a container whose creation
		// failed.
		if ev.Type == "container" && ev.Action == "destroy" && !made[ev.Actor.ID] {
			continue
		}
		actor := ev.Type + " " + k.Line(ev.Actor.Attributes["name"])
		if ev.Type == "volume" || ev.Type == "image" && ev.Actor.Attributes["name"] == "" {
			actor = ev.Type + " " + k.Line(ev.Actor.ID)
		}
		var attributes []string
		for key, v := range ev.Actor.Attributes {
			attributes = append(attributes, key+"="+v)
		}
		sort.Strings(attributes)
		lines[actor] = append(lines[actor], strings.Join(append([]string{ev.Action}, attributes...), " "))
	}
	for _, l := range lines {
		inOrder(l)
	}
	actors := make([]string, 0, len(lines))
	for a := range lines {
		actors = append(actors, a)
	}
	sort.Strings(actors)
	for _, a := range actors {
		o.answers = append(o.answers, catalogue.Answer{Place: "events " + a, About: "events of the entry", Text: strings.Join(lines[a], "\n")})
	}
	return errors.Join(errs...)
}

// inOrder swaps stop and die if they are in the other order, because in dockerd
// the two race.
func inOrder(lines []string) {
	for i := range len(lines) - 1 {
		if strings.HasPrefix(lines[i], "stop ") && strings.HasPrefix(lines[i+1], "die ") {
			lines[i], lines[i+1] = lines[i+1], lines[i]
		}
	}
}

type event struct {
	Type, Action string
	Actor        struct {
		ID         string
		Attributes map[string]string
	}
}

// settled waits until the events match the states in the list of containers:
// dockerd answers a client before it sends the event of a container's end.
func (s *side) settled(since time.Time) ([]event, []containerRow, error) {
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	enough := time.After(15 * time.Second) // on a busy machine dockerd takes seconds
	for {
		containers, err := s.containers()
		if err != nil {
			return nil, nil, err
		}
		events, err := s.events(since)
		if err != nil || reported(events, containers) {
			return events, containers, err
		}
		select {
		case <-again.C:
		case <-enough:
			return events, containers, nil // return them as they are; the comparison shows the difference
		}
	}
}

func reported(events []event, containers []containerRow) bool {
	state := map[string]string{}
	for _, c := range containers {
		state[c.ID] = c.State
	}
	runs, made := map[string]int{}, map[string]bool{}
	for _, e := range events {
		switch {
		case e.Type != "container":
		case e.Action == "create":
			made[e.Actor.ID] = true
		case e.Action == "destroy":
			delete(made, e.Actor.ID)
		case e.Action == "start":
			runs[e.Actor.ID]++
		case e.Action == "die":
			runs[e.Actor.ID]--
		}
	}
	for id := range made {
		if st, there := state[id]; !there || st == "exited" && runs[id] > 0 {
			return false
		}
	}
	return true
}

func (s *side) events(since time.Time) ([]event, error) {
	stamp := func(t time.Time) string { return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()) }
	resp, err := s.client.Get("http://engine/events?since=" + stamp(since) + "&until=" + stamp(time.Now()))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	var out []event
	for {
		var e event
		if err := dec.Decode(&e); err == io.EOF {
			return out, nil
		} else if err != nil {
			return out, err
		}
		out = append(out, e)
	}
}
