// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/config"
)

// output runs holdfastd with arguments that make it print and exit.
func output(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	outs := [2]*os.File{}
	for i := range outs {
		f, err := os.CreateTemp(t.TempDir(), "out")
		if err != nil {
			t.Fatal(err)
		}
		outs[i] = f
	}
	oldOut, oldErr := os.Stdout, os.Stderr
	os.Stdout, os.Stderr = outs[0], outs[1]
	code = run(args)
	os.Stdout, os.Stderr = oldOut, oldErr
	var text [2]string
	for i, f := range outs {
		f.Seek(0, io.SeekStart)
		b, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		text[i] = string(b)
	}
	return code, text[0], text[1]
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "daemon.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestValidateChecksTheConfigurationAndEnds(t *testing.T) {
	good := write(t, `{"live-restore": true, "containerd": "x"}`)
	code, out, errs := output(t, "--validate", "--config-file", good)
	if code != 0 || out != "configuration OK\n" || !strings.Contains(errs, "containerd is ignored") {
		t.Errorf("%d %q %q", code, out, errs)
	}
	bad := write(t, `{"unknown-option": true}`)
	code, out, errs = output(t, "--validate", "--config-file="+bad)
	want := "unable to configure the Holdfast daemon with file " + bad + ": the following directives don't match any configuration option: unknown-option\n"
	if code != 1 || out != "" || errs != want {
		t.Errorf("%d %q %q", code, out, errs)
	}
}

func TestLiveRestoreAsFlagAndInTheFileStopsTheStart(t *testing.T) {
	path := write(t, `{"live-restore": true}`)
	code, _, errs := output(t, "--live-restore", "--config-file", path)
	want := "unable to configure the Holdfast daemon with file " + path + ": the following directives are specified both as a flag and in the configuration file: live-restore: (from flag: true, from file: true)\n"
	if code != 1 || errs != want {
		t.Errorf("%d\ngot  %swant %s", code, errs, want)
	}
}

func TestHelpAndVersionPrintAndEnd(t *testing.T) {
	if code, out, _ := output(t, "--help"); code != 0 || !strings.Contains(out, "Usage:  holdfastd") {
		t.Errorf("%d %q", code, out)
	}
	if code, out, _ := output(t, "-v"); code != 0 || !strings.HasPrefix(out, "Holdfast version ") {
		t.Errorf("%d %q", code, out)
	}
	if code, _, errs := output(t, "--nonsense"); code != 125 || !strings.Contains(errs, "unknown flag: --nonsense\nSee 'holdfastd --help'.") {
		t.Errorf("%d %q", code, errs)
	}
}

func load(t *testing.T, args ...string) (*config.Flags, *config.Config) {
	t.Helper()
	f, err := config.ParseFlags(args)
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(f, os.ReadFile)
	if err != nil {
		t.Fatal(err)
	}
	return f, c
}

func TestLogLinesHaveTheFormOfDockerd(t *testing.T) {
	empty := write(t, "{}")
	for _, tc := range []struct {
		args []string
		want string
	}{
		{nil, `^time=\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-][\d:]+) level=warning msg="disk is full" id=7 time=now\n$`},
		{[]string{"--log-format=json"}, `^\{"time":"\d{4}-[^"]+","level":"warning","msg":"disk is full","id":7,"time":"now"\}\n$`},
		{[]string{"--log-level=error"}, `^$`},
		{[]string{"--log-level=error", "-D"}, `level=warning`},
	} {
		_, cfg := load(t, append(tc.args, "--config-file", empty)...)
		var b bytes.Buffer
		log := newLogger(&b, cfg, new(slog.LevelVar))
		log.Warn("disk is full", "id", 7, "time", "now")
		if !regexp.MustCompile(tc.want).MatchString(b.String()) {
			t.Errorf("%v: %s", tc.args, &b)
		}
	}
}

// fake is a service whose part in a reload can fail.
type fake struct {
	service
	fail error
	got  *config.Config
}

func (f *fake) Reloaders() []config.Reloader {
	return []config.Reloader{config.NewReloader("engine", func(_ context.Context, _, next *config.Config) (func(), func(), error) {
		return func() { f.got = next }, nil, f.fail
	})}
}

func (f *fake) Running() int { return 1 }

// The journal adds the time itself, and expects the priority at the beginning
// of the line.
func TestJournalGetsPrioritiesAndNoSecondTime(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "journal"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	write := func() {
		log := newLogger(f, &config.Config{LogLevel: "debug"}, new(slog.LevelVar))
		log.Debug("a")
		log.Info("b", "time", "noon")
		log.With("c", 1).Warn("d")
		log.Error("e")
		log.Log(t.Context(), levelFatal, "f")
	}
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", st.Dev, st.Ino))
	write()
	got, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	want := `<7>level=debug msg=a
<6>level=info msg=b time=noon
<4>level=warning msg=d c=1
<3>level=error msg=e
<2>level=fatal msg=f
`
	if string(got) != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	// If standard error was redirected, the variable refers to another stream.
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", st.Dev, st.Ino+1))
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	write()
	if got, _ := os.ReadFile(f.Name()); !strings.HasPrefix(string(got), "time=") {
		t.Errorf("got\n%s", got)
	}
}

func TestReloadTakesTheFileOrLeavesEverythingAsItWas(t *testing.T) {
	path := write(t, `{"mtu": 1400}`)
	flags, cfg := load(t, "--config-file", path)
	var out bytes.Buffer
	f := &fake{}
	d := &daemon{flags: flags, cfg: cfg, level: new(slog.LevelVar), service: f}
	d.log = newLogger(&out, cfg, d.level)

	set := func(text string) {
		t.Helper()
		out.Reset()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		d.reload(t.Context())
	}
	set(`{"mtu": 1300, "live-restore": true, "debug": true}`)
	if f.got == nil || !f.got.LiveRestore || !d.cfg.LiveRestore || d.cfg.MTU != 1400 || d.level.Level() != slog.LevelDebug {
		t.Errorf("%+v, level %v", d.cfg, d.level)
	}
	if !strings.Contains(out.String(), "changed keys not taken until restart: mtu") || !strings.Contains(out.String(), "live-restore=true") {
		t.Error(out.String())
	}
	before := d.cfg
	for name, text := range map[string]string{"malformed": `{`, "unknown key": `{"foo": 1}`} {
		set(text)
		if d.cfg != before || !strings.Contains(out.String(), "the old one stays") {
			t.Errorf("%s: %s", name, out.String())
		}
	}
	f.fail = errors.New("no")
	set(`{"debug": false}`)
	if d.cfg != before || d.level.Level() != slog.LevelDebug || !strings.Contains(out.String(), "reload of engine: no") {
		t.Errorf("%s, level %v", out.String(), d.level)
	}
}

func TestStackDumpShowsEveryGoroutine(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	go func() { <-hang }()
	dir := t.TempDir()
	path, err := dumpStacks(dir, time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	if err != nil || filepath.Base(path) != "goroutine-stacks-2030-01-02T030405Z.log" {
		t.Fatal(path, err)
	}
	b, err := os.ReadFile(path)
	if err != nil || strings.Count(string(b), "\ngoroutine ") < 1 || !strings.Contains(string(b), "TestStackDump") {
		t.Errorf("%v %s", err, b)
	}
	if _, err := dumpStacks(filepath.Join(dir, "none"), time.Now()); err == nil {
		t.Error("no error without a directory")
	}
}

func TestShimIsFoundBesideTheDaemonOrByName(t *testing.T) {
	_, cfg := load(t, "--config-file", write(t, "{}"), "--shim", "/no/such/shim")
	if _, err := findShim(cfg); err == nil || !strings.Contains(err.Error(), "/no/such/shim") || !strings.Contains(err.Error(), "--shim") {
		t.Errorf("got %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	_, cfg = load(t, "--config-file", write(t, "{}"), "--shim", self)
	if got, err := findShim(cfg); err != nil || got != self {
		t.Errorf("%s %v", got, err)
	}
	_, cfg = load(t, "--config-file", write(t, "{}"))
	if _, err := findShim(cfg); err == nil || !strings.Contains(err.Error(), filepath.Join(filepath.Dir(self), "holdfast-shim")) {
		t.Errorf("got %v", err)
	}
}
