// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/kit"
)

// newer turns a file into one of a future release: it has a higher schema
// number, and fields that this release knows have another form.
func newer(t *testing.T, path string, other ...string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	first, rest, _ := strings.Cut(string(text), "\n")
	lines := strings.HasSuffix(path, ".jsonl") || json.Valid([]byte(first)) // the journal's header is its first line
	if !lines {
		first, rest = string(text), ""
	}
	var object map[string]any
	if err := json.Unmarshal([]byte(first), &object); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	object["schema"] = 99
	for _, key := range other {
		if _, there := object[key]; !there {
			t.Fatalf("%s has no %s: %s", path, key, first)
		}
		object[key] = map[string]any{"of": []string{"another", "form"}}
	}
	b, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, append(append(b, '\n'), rest...))
}

func write(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// picture is a digest of each file below the directories.
func picture(t *testing.T, dirs ...string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() && e.Name() == "rootfs" {
				return fs.SkipDir // the container's own files
			}
			if err != nil || !e.Type().IsRegular() || e.Name() == "netns" {
				return err
			}
			text, err := os.ReadFile(path)
			out[path] = fmt.Sprintf("%x", sha256.Sum256(text))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func compare(t *testing.T, before, after map[string]string) {
	t.Helper()
	if maps.Equal(before, after) {
		return
	}
	for path, sum := range before {
		if after[path] != sum {
			t.Errorf("%s was changed or removed", path)
		}
	}
	for path := range after {
		if before[path] == "" {
			t.Errorf("%s is new", path)
		}
	}
}

// The daemon of an older release finds files of a newer one. If a file concerns
// one container or volume, that one is not managed; if it concerns the engine
// itself, the start is refused. In both cases nothing is changed, the
// containers run on, and the newer release finds everything as it was.
func TestFilesOfANewerReleaseAreRefusedAndNothingIsTouched(t *testing.T) {
	one := func(t *testing.T, pattern string) string {
		t.Helper()
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			t.Fatalf("%s: %v, %v", pattern, paths, err)
		}
		return paths[0]
	}
	type world struct {
		*kit.Daemon
		web, done string
	}
	container := func(d world, id string) []string {
		return []string{d.DataRoot + "/containers/" + id, d.ExecRoot + "/shim/" + id}
	}
	for name, c := range map[string]struct {
		file    func(t *testing.T, d world) string
		other   []string                    // keys of another form
		edit    func(object map[string]any) // changes the object instead of the file's schema number
		refused bool                        // the whole start is refused, not only the object
		gone    string                      // container that is not visible
		kept    func(d world) []string      // folders that must not change
	}{
		"spec": {
			file:  func(t *testing.T, d world) string { return d.DataRoot + "/containers/" + d.web + "/spec.json" },
			other: []string{"name"}, gone: "web",
			kept: func(d world) []string { return container(d, d.web) },
		},
		"sandbox": {
			file: func(t *testing.T, d world) string { return d.DataRoot + "/containers/" + d.web + "/spec.json" },
			edit: func(o map[string]any) { o["sandbox"].(map[string]any)["schema"] = 99 }, gone: "web",
			kept: func(d world) []string { return container(d, d.web) },
		},
		"state": {
			file:  func(t *testing.T, d world) string { return d.ExecRoot + "/shim/" + d.web + "/state.json" },
			other: []string{"status"}, gone: "web",
			kept: func(d world) []string { return container(d, d.web) },
		},
		"exit record": {
			file:  func(t *testing.T, d world) string { return d.DataRoot + "/containers/" + d.done + "/exit.json" },
			other: []string{"status"}, gone: "done",
			kept: func(d world) []string { return container(d, d.done)[:1] },
		},
		"volume": {
			file:  func(t *testing.T, d world) string { return d.DataRoot + "/volumes/kept/meta.json" },
			other: []string{"name"},
			kept:  func(d world) []string { return []string{d.DataRoot + "/volumes/kept"} },
		},
		"network": {
			file:  func(t *testing.T, d world) string { return one(t, d.DataRoot+"/networks/*.json") },
			other: []string{"name"}, refused: true,
			kept: func(d world) []string {
				return append(container(d, d.web), d.DataRoot+"/networks", d.DataRoot+"/volumes", d.DataRoot+"/containers")
			},
		},
		"lives": {
			file:  func(t *testing.T, d world) string { return one(t, d.DataRoot+"/events/lives*") },
			other: []string{"lives"}, refused: true,
			kept: func(d world) []string {
				return append(container(d, d.web), d.DataRoot+"/networks", d.DataRoot+"/events", d.DataRoot+"/containers")
			},
		},
		"journal": {
			file: func(t *testing.T, d world) string { return one(t, d.DataRoot+"/events/0*") }, refused: true,
			kept: func(d world) []string {
				return append(container(d, d.web), d.DataRoot+"/networks", d.DataRoot+"/events", d.DataRoot+"/containers")
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := world{Daemon: kit.Start(t, kit.Options{LiveRestore: true})}
			d.Load(image, kit.Busybox(t, nil))
			d.web = d.Docker("run", "-d", "--name", "web", "-p", "127.0.0.1::80", "-v", "kept:/data", image, "httpd", "-f", "-h", "/www")
			d.done = d.Docker("create", "--name", "done", image, "sh", "-c", "exit 3")
			d.TryDocker("start", "-a", "done")
			kit.Eventually(t, "the end", func() bool { return inspect(t, d.Daemon, "done").State.ExitCode == 3 })
			before := inspect(t, d.Daemon, "web")
			port := kit.Probe(t, before.url())
			port.WaitAnswer(t)
			d.Kill9()

			if c.gone == "done" {
				// As after a reboot, where only the record in the data root
				// exists.
				if err := os.RemoveAll(d.ExecRoot + "/shim/" + d.done); err != nil {
					t.Fatal(err)
				}
			}
			path := c.file(t, d)
			own, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if c.edit != nil {
				var object map[string]any
				if err := json.Unmarshal(own, &object); err != nil {
					t.Fatal(err)
				}
				c.edit(object)
				b, _ := json.Marshal(object)
				write(t, path, b)
			} else {
				newer(t, path, c.other...)
			}
			files := picture(t, c.kept(d)...)

			said := ""
			if c.refused {
				err := d.TryStart()
				if err == nil {
					t.Fatal("the daemon started")
				}
				said = err.Error()
			} else {
				d.Start()
				said = d.Log()
				if c.gone != "" && d.TryDocker("inspect", c.gone).Code == 0 {
					t.Errorf("%s is managed", c.gone)
				}
				d.TryDocker("rm", "-f", d.done, d.web+"x")
				d.TryDocker("volume", "rm", "kept")
				d.TryDocker("volume", "prune", "-af")
				d.TryDocker("network", "prune", "-f")
				d.Kill9()
			}
			if !strings.Contains(said, path) && !strings.Contains(said, d.web) && !strings.Contains(said, filepath.Base(path)) {
				t.Errorf("the message does not name the file: %s", said)
			}
			if !strings.Contains(said, "newer") {
				t.Errorf("the message gives no reason: %s", said)
			}
			compare(t, files, picture(t, c.kept(d)...))

			// The newer release returns: here, the original file is restored.
			write(t, path, own)
			d.Start()
			same(t, d.Daemon, map[string]seen{"web": before})
			if r := port.Stop(); len(r.Failures) > 0 {
				t.Errorf("the published port: %s", r)
			}
			if got := d.Docker("exec", "web", "echo", "in"); got != "in" {
				t.Errorf("exec: %s", got)
			}
			if c.gone == "done" && inspect(t, d.Daemon, "done").State.ExitCode != 3 {
				t.Error("the exit code is lost")
			}
		})
	}
}
