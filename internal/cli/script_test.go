// SPDX-License-Identifier: Apache-2.0

//go:build linux

package cli

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"holdfast/internal/version"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"holdfast": func() {
			version.Version, version.Commit = "1.2.3", "abcdef0"
			os.Exit(Main())
		},
	})
}

// TestCommandLine runs the scripts in testdata with the real main.
func TestCommandLine(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir)
			for _, name := range []string{"DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", EnvHost} {
				env.Setenv(name, "")
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"daemon": startFakeDaemon,
			"code":   expectCode,
			"signal": expectCodeAfterSignal,
		},
	})
}

// startFakeDaemon is the command "daemon SOCKET STATUSFILE": an API that
// answers ping, and the status with the present content of the file. It makes the
// file "asked" beside it when it was asked for the status.
func startFakeDaemon(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: daemon SOCKET STATUSFILE")
	}
	file := ts.MkAbs(args[1])
	listener, err := net.Listen("unix", ts.MkAbs(args[0]))
	ts.Check(err)
	mux := http.NewServeMux()
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Api-Version", "1.50")
		w.Header().Set("Ostype", "linux")
		fmt.Fprint(w, "OK")
	})
	mux.HandleFunc("/holdfast/v1/status", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, file)
		if err := os.WriteFile(filepath.Join(filepath.Dir(file), "asked"), nil, 0o600); err != nil {
			ts.Logf("fake daemon: %v", err)
		}
	})
	server := &http.Server{Handler: mux}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			ts.Logf("fake daemon: %v", err)
		}
	}()
	ts.Defer(func() {
		server.Close()
		<-ended
	})
}

// expectCode is the command "code N COMMAND…".
func expectCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// expectCodeAfterSignal is the command "signal N COMMAND…": it runs the command
// with a daemon that never answers it, sends SIGTERM once the daemon has
// received the request, and expects the exit code.
func expectCodeAfterSignal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: signal N COMMAND...")
	}
	listener, err := net.Listen("unix", ts.MkAbs("silent.sock"))
	ts.Check(err)
	asked := make(chan struct{}, 16)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/_ping" {
			w.Header().Set("Api-Version", "1.50")
			return
		}
		asked <- struct{}{}
		<-r.Context().Done()
	})}
	go server.Serve(listener)
	defer server.Close()

	cmd := exec.Command(args[1], args[2:]...)
	cmd.Path = filepath.Join(filepath.SplitList(ts.Getenv("PATH"))[0], args[1])
	cmd.Err = nil // the lookup was in the test's own PATH
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = append(os.Environ(), "HOME="+ts.Getenv("HOME"), EnvHost+"=unix://"+ts.MkAbs("silent.sock"))
	ts.Check(cmd.Start())
	<-asked
	ts.Check(cmd.Process.Signal(syscall.SIGTERM))
	err = cmd.Wait()
	if got := strconv.Itoa(cmd.ProcessState.ExitCode()); got != args[0] {
		ts.Fatalf("exit code %s, want %s: %v", got, args[0], err)
	}
}

func TestExecRootIsGuessedFromTheSocket(t *testing.T) {
	for host, want := range map[string]string{
		DefaultHost:                             defaultExecRoot,
		"unix:///tmp/private/run/holdfast.sock": "/tmp/private/run",
		"unix:///var/run/other.sock":            defaultExecRoot,
		"tcp://10.0.0.1:2376":                   "",
		"ssh://host":                            "",
	} {
		if got := execRootOf(host); got != filepath.FromSlash(want) {
			t.Errorf("%s: %q, want %q", host, got, want)
		}
	}
}
