// SPDX-License-Identifier: Apache-2.0

package power

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/jsonstream"
	"golang.org/x/sys/unix"

	"holdfast/internal/container"
	"holdfast/internal/event"
	"holdfast/internal/image"
	"holdfast/internal/logs/format"
	"holdfast/internal/store"
	"holdfast/internal/volume"
	"holdfast/test/kit"
	"holdfast/test/power/disk"
)

// The tests here cut the power under one package alone, on each file system, so
// that they find at once what a whole engine finds by luck.

// bench is a mounted disk that records, in a process of its own: a process must
// not use a file system whose disk it serves, because a page fault in it would
// stop the server, too.
type bench struct {
	t   *testing.T
	fs  filesystem
	dir string
	// to and from speak to the process that serves the disk.
	to, from *os.File
}

// Words from the bench's process.
const (
	wordPromised = 'p'
	wordPosition = 'n'
)

// benchFolder is the variable with the folder of a bench, in its process.
const benchFolder = "HOLDFAST_TEST_BENCH"

func (b *bench) ask(word byte) int {
	var n int
	_, err := b.to.Write([]byte{word})
	if err == nil {
		_, err = fmt.Fscanln(b.from, &n)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return n
}

// promised notes that what was done so far must be on the disk from now on.
func (b *bench) promised() { b.ask(wordPromised) }

// position is the number of requests that the disk has got.
func (b *bench) position() int { return b.ask(wordPosition) }

// benchProcess runs do of the test t in a process of its own, with the disk
// mounted at dir, and returns the positions of its promises.
func benchProcess(t *testing.T, rec *disk.Recorder, dir string) (promises []int) {
	t.Helper()
	theirs, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	from, answer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	cmd := exec.Command(os.Args[0], "-test.run", "^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$", "-test.v", "-fs", *fsFlag)
	cmd.Env = append(os.Environ(), benchFolder+"="+dir)
	cmd.ExtraFiles = []*os.File{answer, theirs}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Start()
	answer.Close()
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	var word [1]byte
	for {
		if _, err := from.Read(word[:]); err != nil {
			break // it has ended
		}
		at := rec.Position()
		if word[0] == wordPromised {
			promises = append(promises, at)
		}
		fmt.Fprintln(to, at)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	return promises
}

// sync writes all that is in memory to the disk, as the kernel does at any time.
func (b *bench) sync() {
	d, err := os.Open(b.dir)
	if err == nil {
		err = errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

func mountAt(t *testing.T, fs filesystem, device, dir string, options string) func() {
	t.Helper()
	if err := unix.Mount(device, dir, fs.name, 0, options); err != nil {
		t.Fatalf("mount %s: %v", fs.name, err)
	}
	mounted := true
	un := func() {
		if mounted {
			mounted = false
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount: %v", err)
			}
		}
	}
	t.Cleanup(un)
	return un
}

// onEach runs do on a recording disk with each file system, and then look with
// what is left by cuts: at each promise with nothing more than what was flushed,
// and n others. kept is the number of promises that were made before.
func onEach(t *testing.T, n int, do func(*bench), look func(t *testing.T, dir string, kept int)) {
	for _, fs := range chosen(t) {
		t.Run(fs.name, func(t *testing.T) {
			if dir := os.Getenv(benchFolder); dir != "" {
				do(&bench{t: t, fs: fs, dir: dir, to: os.NewFile(3, "to"), from: os.NewFile(4, "from")})
				return
			}
			seed := uint64(time.Now().UnixNano())
			if *seedFlag != 0 {
				seed = *seedFlag
			}
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 0))
			empty := filepath.Join(t.TempDir(), "empty")
			fs.make(t, empty)
			rec, err := disk.Record(empty, fs.whole)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			un := mountAt(t, fs, rec.Device(), dir, fs.options)
			begun := rec.Position()
			promises := benchProcess(t, rec, dir)
			log := rec.Log()
			un()
			if err := rec.Close(); err != nil {
				t.Error(err)
			}
			var cuts []cut
			for _, at := range promises {
				cuts = append(cuts, cut{at, disk.DropAll})
			}
			for range n {
				cuts = append(cuts, cut{begun + r.IntN(len(log.Requests)-begun+1), disk.AnyFate(r)})
			}
			slices.SortStableFunc(cuts, func(a, b cut) int { return a.at - b.at })
			cutter := disk.NewCutter(log)
			for _, c := range cuts {
				kept, _ := slices.BinarySearch(promises, c.at+1)
				name := fmt.Sprintf("after %d of %d requests, %s", c.at, len(log.Requests), c.fate)
				content := cutter.Cut(c.at, c.fate, r)
				t.Run(name, func(t *testing.T) {
					img, err := disk.Load(content, log.Size)
					if err != nil {
						t.Fatal(err)
					}
					defer img.Close()
					dir := t.TempDir()
					defer mountAt(t, fs, img.Device(), dir, fs.options)()
					look(t, dir, kept)
				})
			}
		})
	}
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// TestLayersAreOnTheDiskBeforeTheirImage loads images with each storage driver.
func TestLayersAreOnTheDiskBeforeTheirImage(t *testing.T) {
	for _, driver := range []string{image.Overlay, image.Native} {
		t.Run(driver, func(t *testing.T) {
			lists, want := make([][]kit.File, 3), make([]files, 3)
			r := rand.New(rand.NewPCG(1, 1))
			for i := range want {
				lists[i], want[i] = layerFiles(r, dataFolder, fmt.Sprint(i))
			}
			onEach(t, 3, func(b *bench) {
				t := b.t
				s, err := image.Open(t.Context(), image.Options{Root: filepath.Join(b.dir, "images"), Snapshotter: driver, Log: quiet()})
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				for i, list := range lists {
					img := kit.Image(t, kit.Busybox(t, nil), nil, kit.Layer(t, list...))
					if err := s.Load(t.Context(), kit.Archive(t, fmt.Sprintf("image%d:1", i), img), nil, func(jsonstream.Message) {}); err != nil {
						t.Fatal(err)
					}
					b.promised()
				}
			}, func(t *testing.T, dir string, kept int) {
				// Layers are found by the mark that each has.
				have := map[string]string{}
				marks, err := filepath.Glob(filepath.Join(dir, "images/snapshots/*/snapshots/*", map[string]string{image.Overlay: "fs", image.Native: "."}[driver], dataFolder, "mark"))
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range marks {
					b, err := os.ReadFile(m)
					if err != nil {
						t.Fatal(err)
					}
					have[strings.TrimSpace(string(b))] = filepath.Dir(m)
				}
				for i := range kept {
					got := files{}
					if folder := have[fmt.Sprint(i)]; folder != "" {
						in, err := folderFiles(folder)
						if err != nil {
							t.Fatal(err)
						}
						for name, sum := range in {
							got[dataFolder+"/"+name] = sum
						}
					}
					if d := got.differences(want[i]); len(d) > 0 {
						t.Errorf("image %d was loaded, and its layer has lost files: %s", i, strings.Join(d, ", "))
					}
				}
			})
		})
	}
}

// TestVolumeIsFilledWholeOrAgain fills volumes from an image, and does so again
// after the loss of power, as the next start of the container does.
func TestVolumeIsFilledWholeOrAgain(t *testing.T) {
	src := t.TempDir()
	r := rand.New(rand.NewPCG(2, 2))
	list, _ := layerFiles(r, dataFolder, "volume")
	want := files{}
	if err := os.Mkdir(filepath.Join(src, dataFolder), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range list[1:] {
		if err := os.WriteFile(filepath.Join(src, f.Name), f.Body, 0o644); err != nil {
			t.Fatal(err)
		}
		want[filepath.Base(f.Name)] = sum(f.Body)
	}
	onEach(t, 12, func(b *bench) {
		t := b.t
		v, err := volume.Open(filepath.Join(b.dir, "volumes"), volume.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			name := fmt.Sprintf("volume%d", i)
			if _, _, err := v.Create(volume.CreateOptions{Name: name}); err != nil {
				t.Fatal(err)
			}
			b.promised()
			if err := v.CopyUp(src, "/"+dataFolder, name, ""); err != nil {
				t.Fatal(err)
			}
			b.promised()
			// The container syncs a file of its own.
			if err := writeSync(filepath.Join(b.dir, "volumes", name, "_data", "own"), "own"); err != nil {
				t.Fatal(err)
			}
			b.promised()
		}
	}, func(t *testing.T, dir string, kept int) {
		v, err := volume.Open(filepath.Join(dir, "volumes"), volume.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			name := fmt.Sprintf("volume%d", i)
			if kept <= 3*i {
				continue
			}
			if err := v.CopyUp(src, "/"+dataFolder, name, ""); err != nil {
				t.Error(err)
				continue
			}
			data := filepath.Join(dir, "volumes", name, "_data")
			got, err := folderFiles(data)
			if err != nil {
				t.Fatal(err)
			}
			own := got["own"]
			delete(got, "own")
			if d := got.differences(want); len(d) > 0 {
				t.Errorf("%s is not filled: %s", name, strings.Join(d, ", "))
			}
			if kept >= 3*i+3 && own != sum([]byte("own")) {
				t.Errorf("%s has lost what was synced", name)
			}
		}
	})
}

func writeSync(path, text string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Sync(), f.Close())
}

// TestRecordsAreOldOrNewAndNeverTorn writes the specs of containers and the lives
// of daemons.
func TestRecordsAreOldOrNewAndNeverTorn(t *testing.T) {
	const containers = 4
	onEach(t, 25, func(b *bench) {
		t := b.t
		s, err := store.Open(filepath.Join(b.dir, "data"), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		for round := range 3 {
			lives, err := event.OpenLives(s.EventsDir())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := lives.Begin(event.Life{BootID: fmt.Sprint(round), Start: time.Now()}); err != nil {
				t.Fatal(err)
			}
			for c := range containers {
				id := fmt.Sprintf("c%d", c)
				if round == 0 {
					if err := s.BeginCreate(id); err != nil {
						t.Fatal(err)
					}
					if err := s.NoteVolume(id, "volume-of-"+id); err != nil {
						t.Fatal(err)
					}
				}
				if err := s.WriteSpec(&container.Spec{ID: id, Name: fmt.Sprint(round)}); err != nil {
					t.Fatal(err)
				}
				if round == 0 {
					if err := s.EndCreate(id); err != nil {
						t.Fatal(err)
					}
				}
				b.promised()
			}
		}
		for c := range containers {
			if err := s.RemoveContainer(fmt.Sprintf("c%d", c)); err != nil {
				t.Fatal(err)
			}
			b.promised()
		}
	}, func(t *testing.T, dir string, kept int) {
		s, err := store.Open(filepath.Join(dir, "data"), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		lives, err := event.OpenLives(s.EventsDir())
		if err != nil {
			t.Fatal(err)
		}
		if p := lives.SetAside(); p != "" {
			t.Errorf("%s is torn", p)
		}
		specs, broken, err := s.LoadAll()
		if err != nil || len(broken) > 0 {
			t.Errorf("%v, %v", broken, err)
		}
		rounds := map[string]string{}
		for _, spec := range specs {
			rounds[spec.ID] = spec.Name
		}
		for c := range containers {
			id := fmt.Sprintf("c%d", c)
			written := (kept + containers - 1 - c) / containers // promises about this container
			got, there := rounds[id]
			var allowed []string
			switch {
			case written == 0:
				allowed = []string{"", "0"}
			case written < 3:
				allowed = []string{fmt.Sprint(written - 1), fmt.Sprint(written)}
			case written == 3:
				allowed = []string{"2", ""}
			default:
				allowed = []string{""}
			}
			if !slices.Contains(allowed, got) || there != (got != "") {
				t.Errorf("%s was written in round %q, want one of %q (%d promises)", id, got, allowed, kept)
			}
		}
		unborn, err := s.Unborn()
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range unborn {
			// A container that is there may have its mark still, and the next daemon
			// completes the creation; one that is not there is rolled back.
			if _, there := rounds[u.ID]; there != u.Complete {
				t.Errorf("%s is there: %v, and its creation is complete: %v", u.ID, there, u.Complete)
			}
		}
	})
}

// TestLogKeepsItsOrder writes logs that rotate while the kernel writes what is in
// memory, at any time. What is left is a beginning of what was written, apart from
// what rotation has removed.
func TestLogKeepsItsOrder(t *testing.T) {
	for _, compress := range []bool{false, true} {
		t.Run(fmt.Sprintf("compress=%v", compress), func(t *testing.T) {
			const maxFiles = 5
			onEach(t, 25, func(b *bench) {
				t := b.t
				l, err := format.Open(format.Config{Path: filepath.Join(b.dir, "log"), MaxSize: 20_000, MaxFiles: maxFiles, Compress: compress})
				if err != nil {
					t.Fatal(err)
				}
				done := make(chan struct{})
				over := make(chan struct{})
				go func() {
					defer close(over)
					for {
						select {
						case <-done:
							return
						default:
							b.sync()
						}
					}
				}()
				// Written until the disk has got some work, so that rotation and sync
				// meet often.
				n := 0
				for from := b.position(); b.position() < from+300 && n < 200_000; {
					for range 20 {
						n++
						l.Write(format.Stdout, time.Now(), fmt.Appendf(nil, "line %d\n", n))
					}
					l.Flush()
				}
				close(done)
				<-over
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
			}, func(t *testing.T, dir string, _ int) {
				path := filepath.Join(dir, "log")
				last := 0
				for i := maxFiles - 1; i >= 0; i-- {
					name := path
					if i > 0 {
						name = fmt.Sprintf("%s.%d", path, i)
					}
					damaged := false
					for _, n := range logLines(t, name) {
						if n == 0 {
							damaged = true
							continue
						}
						if last != 0 && n != last+1 && !(damaged && n > last) {
							t.Errorf("in %s line %d comes after line %d", filepath.Base(name), n, last)
						}
						last, damaged = n, false
					}
				}
			})
		})
	}
}

// logLines reads the numbers of the lines in a log file, or in its compressed
// form. 0 stands for a line with zeros of a sector that was not written: appending
// to a block is no transaction of ext4, and readers of the log leave such a line out.
func logLines(t *testing.T, path string) (out []int) {
	t.Helper()
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if text, err = unzip(path + ".gz"); errors.Is(err, os.ErrNotExist) {
			return nil
		}
	}
	if err != nil {
		t.Errorf("%s: %v", filepath.Base(path), err)
		return nil
	}
	in := bufio.NewReader(bytes.NewReader(text))
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return out // a torn line is cut off by the next owner
		}
		var entry struct{ Log string }
		var n int
		if json.Unmarshal(line, &entry) != nil {
			if bytes.IndexByte(line, 0) >= 0 {
				out = append(out, 0)
				continue
			}
			t.Errorf("%s has a line %.60q", filepath.Base(path), line)
			return out
		}
		if _, err := fmt.Sscanf(entry.Log, "line %d", &n); err != nil {
			t.Errorf("%s has a line %.60q", filepath.Base(path), line)
			return out
		}
		out = append(out, n)
	}
}

func unzip(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}
