// SPDX-License-Identifier: Apache-2.0

package security

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/test/kit"
)

// modeRow is a row of the table of modes in docs/security.md.
type modeRow struct {
	pattern string // with DATA, EXEC, ID and NAME for variable parts
	match   *regexp.Regexp
	mode    string // octal; empty if the tree below belongs to the container
	api     bool   // belongs to the API's group
	found   bool
}

func modeTable(t *testing.T, d *kit.Daemon) []*modeRow {
	t.Helper()
	doc, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(doc), "| path | mode | group |")
	if !found {
		t.Fatal("docs/security.md has no table of modes")
	}
	var rows []*modeRow
	for line := range strings.Lines(table) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "| `") {
			if len(rows) > 0 {
				break
			}
			continue
		}
		cells := strings.Split(strings.TrimPrefix(line, "|"), "|")
		path, mode, group := strings.Trim(cells[0], " `"), strings.Trim(cells[1], " `"), strings.TrimSpace(cells[2])
		if mode == "its own" {
			mode = ""
		}
		expr := regexp.QuoteMeta(path)
		expr = strings.NewReplacer("DATA", regexp.QuoteMeta(d.DataRoot), "EXEC", regexp.QuoteMeta(d.ExecRoot),
			"ID", "(?:[0-9a-f]{64}|[0-9a-z]{25})", "NAME", "[^/]+", `\*`, "[^/]*").Replace(expr)
		rows = append(rows, &modeRow{pattern: path, match: regexp.MustCompile("^" + expr + "$"), mode: mode, api: group == "API"})
	}
	return rows
}

func TestModesOfAllFilesAreThoseThatAreDocumented(t *testing.T) {
	d := kit.New(t, kit.Options{LiveRestore: true, Flags: []string{"--group", strconv.Itoa(member)}})
	d.Start()
	d.Load(image, kit.Busybox(t, nil))
	inhabited(t, d)
	d.Docker("network", "create", "net")
	d.Docker("run", "-d", "--name", "whole", "--network", "net", "--ipc", "shareable", "--health-cmd", "true", image, "sleep", "1000")
	d.Docker("run", "--name", "ended", image, "true")
	d.Docker("exec", "root", "mkdir", "/v/part")
	d.Docker("run", "-d", "--name", "part", "--mount", "type=volume,source=vol,target=/s,volume-subpath=part", image, "sleep", "1000")
	d.Docker("run", "-d", "--name", "joins", "--network", "container:whole", "--ipc", "container:whole", "--pid", "container:whole", image, "sleep", "1000")
	events := d.DockerCommand(t.Context(), "events", "--until", strconv.FormatInt(time.Now().Add(2*time.Second).Unix(), 10)) // leaves the log file of the event server
	if out, err := events.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	kit.Binary(t, "holdfast-build")
	old := d.DockerCommand(t.Context(), "build", "-q", "-")
	old.Env = append(old.Env, "DOCKER_BUILDKIT=0")
	old.Stdin = strings.NewReader("FROM " + image + "\nRUN true\n")
	if out, err := old.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	kit.Binary(t, "holdfast-swarm")
	const manager = "127.0.0.1:23766"
	d.Docker("swarm", "init", "--listen-addr", manager, "--advertise-addr", manager)
	t.Cleanup(func() { d.Docker("swarm", "leave", "--force") })
	d.Docker("network", "create", "-d", "overlay", "mesh")
	d.Docker("service", "create", "-d", "--name", "web", "--network", "mesh", image, "sleep", "1000")
	kit.Eventually(t, "a task is on the overlay network", func() bool {
		return strings.HasPrefix(d.Docker("service", "ps", "--format", "{{.CurrentState}}", "web"), "Running")
	})
	d.Docker("pause", "whole")
	d.Docker("unpause", "whole")
	rows := modeTable(t, d)
	for _, root := range []string{d.DataRoot, d.ExecRoot} {
		err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			return checkMode(t, rows, path, e)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range rows {
		if !r.found {
			t.Errorf("the table names %s, but no such file exists", r.pattern)
		}
	}
}

// checkMode compares one file with the first row that matches it.
func checkMode(t *testing.T, rows []*modeRow, path string, e fs.DirEntry) error {
	t.Helper()
	i := slices.IndexFunc(rows, func(r *modeRow) bool { return r.match.MatchString(path) })
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode()&fs.ModeSymlink != 0 {
		return nil // the mode of a symbolic link has no meaning
	}
	sys := st.Sys().(*syscall.Stat_t)
	shown := fmt.Sprintf("%s: %04o %d:%d", path, sys.Mode&0o7777, sys.Uid, sys.Gid)
	if i < 0 {
		t.Errorf("docs/security.md does not list %s", shown)
		return nil
	}
	r := rows[i]
	r.found = true
	if r.mode == "" {
		if e.IsDir() {
			return fs.SkipDir
		}
		return nil
	}
	group := uint32(0)
	if r.api {
		group = member
	}
	if want, err := strconv.ParseUint(r.mode, 8, 32); err != nil {
		t.Errorf("docs/security.md: %s: %v", r.pattern, err)
	} else if sys.Mode&0o7777 != uint32(want) || sys.Gid != group {
		t.Errorf("docs/security.md lists %s with mode %s and group %d, but the file has %s", r.pattern, r.mode, group, shown)
	}
	return nil
}
