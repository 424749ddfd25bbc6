// SPDX-License-Identifier: Apache-2.0

package script

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/tools/txtar"

	"holdfast/test/kit"
)

func TestMain(m *testing.M) { kit.Main(m) }

// image is loaded into every daemon before its script starts.
const image = "busybox:test"

// TestDayOfWork runs the scripts. Beside testscript's own commands there are
//
//	docker ARGS…             runs the client; "! docker" if it must fail
//	code N ARGS…             runs the client, which must exit with this code
//	until PATTERN ARGS…      runs the client until its output matches
//	capture NAME             stores the last standard output in a variable
//	get URL                  sends an HTTP request
//	registry [USER:PASSWORD] starts a registry, $REGISTRY, with images
//	daemon restart|kill|start|hup FILE
//	stamp NAME               stores the current time in a variable
//	listen NAME              binds a port of 127.0.0.1 and stores it in a variable
//	echo-server CONTAINER PORT, say-udp ADDRESS TEXT
//
// $CLIENT is docker or holdfast. app.tar is an archive of the image app:tar. If
// the script has a file daemon.json, it is the daemon's configuration.
func TestDayOfWork(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, client := range []string{"docker", "holdfast"} {
		for _, file := range files {
			t.Run(client+"/"+strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
				t.Parallel()
				runScript(t, client, file)
			})
		}
	}
}

func runScript(t *testing.T, client, file string) {
	var o kit.Options
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range archive.Files {
		if f.Name == "daemon.json" {
			if err := json.Unmarshal(f.Data, &o.Config); err != nil {
				t.Fatal(err)
			}
		}
	}
	d := kit.Start(t, o)
	d.Load(image, kit.Busybox(t, nil))
	cmd := d.DockerCommand(context.Background())
	if client == "holdfast" {
		cmd = d.HoldfastCommand(context.Background())
	}
	s := &scene{t: t, d: d}
	testscript.Run(t, testscript.Params{
		Files: []string{file},
		Setup: func(env *testscript.Env) error {
			bin := filepath.Join(env.WorkDir, ".bin")
			if err := os.Mkdir(bin, 0o755); err != nil {
				return err
			}
			// Both clients get the same name, so that one script fits both.
			if err := os.Symlink(cmd.Path, filepath.Join(bin, "docker")); err != nil {
				return err
			}
			for _, v := range cmd.Env {
				if strings.HasPrefix(v, "DOCKER_") {
					env.Vars = append(env.Vars, v)
				}
			}
			app, err := io.ReadAll(kit.Archive(t, "app:tar", kit.Busybox(t, nil)))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(env.WorkDir, "app.tar"), app, 0o600); err != nil {
				return err
			}
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			env.Setenv("CLIENT", client)
			env.Setenv("ROOT", d.Root)
			env.Setenv("BRIDGE", d.Bridge)
			env.Setenv("GATEWAY", d.Address.Addr().String())
			env.Setenv("CGROUP", d.Cgroup)
			env.Setenv("TERM", "xterm")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"docker":      runClient,
			"code":        expectCode,
			"until":       untilSaid,
			"capture":     capture,
			"get":         get,
			"registry":    s.registry,
			"daemon":      s.daemon,
			"stamp":       stamp,
			"listen":      listen,
			"say-udp":     sayUDP,
			"echo-server": s.echoServer,
		},
		Condition: func(cond string) (bool, error) {
			if name, ok := strings.CutPrefix(cond, "client:"); ok {
				return name == client, nil
			}
			return false, fmt.Errorf("unknown condition %s", cond)
		},
	})
}

type scene struct {
	t *testing.T
	d *kit.Daemon
}

func runClient(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec("docker", args...)
	switch {
	case neg && err == nil:
		ts.Fatalf("unexpected success")
	case !neg && err != nil:
		ts.Fatalf("%v", err)
	}
}

func expectCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N ARGS...")
	}
	got := "0"
	if err := ts.Exec("docker", args[1:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = strconv.Itoa(exit.ExitCode())
	}
	if got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// untilSaid repeats a command until its output matches. It is for output that
// appears after some time, such as the next line of a program.
func untilSaid(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until PATTERN ARGS...")
	}
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	enough := time.After(20 * time.Second)
	for {
		err := ts.Exec("docker", args[1:]...)
		if want.MatchString(ts.ReadFile("stdout")) || want.MatchString(ts.ReadFile("stderr")) {
			return
		}
		select {
		case <-again.C:
		case <-enough:
			ts.Fatalf("never said %s: %v", args[0], err)
		}
	}
}

func capture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: capture NAME")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// get repeats a request until the server listens, because a started container's
// program may not be ready yet.
func get(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: get URL")
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	enough := time.After(10 * time.Second)
	for {
		resp, err := client.Get(args[0])
		if neg {
			if err == nil {
				ts.Fatalf("unexpected answer: %s", resp.Status)
			}
			return
		}
		if err == nil {
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			ts.Check(err)
			ts.Stdout().Write(b)
			return
		}
		select {
		case <-again.C:
		case <-enough:
			ts.Fatalf("%v", err)
		}
	}
}

func (s *scene) daemon(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: daemon restart|kill|start|hup FILE")
	}
	switch args[0] {
	case "restart":
		s.d.Restart()
	case "kill":
		s.d.Kill9()
	case "start":
		s.d.Start()
	case "hup":
		var conf map[string]any
		text := os.Expand(ts.ReadFile(args[1]), ts.Getenv)
		ts.Check(json.Unmarshal([]byte(text), &conf))
		s.d.WriteConfig(conf)
		s.d.Hup()
	default:
		ts.Fatalf("daemon %s?", args[0])
	}
}
