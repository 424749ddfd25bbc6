// SPDX-License-Identifier: Apache-2.0

package build

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"golang.org/x/sys/unix"

	"holdfast/internal/osthread"
	"holdfast/test/kit"
)

// foreign is an architecture whose programs this machine does not run by itself.
type foreign struct {
	arch    string // as in images
	handler string // of binfmt_misc, which an error names
	program string // of the package qemu-user-static
	machine string // e_machine of ELF, as binfmt_misc reads it
}

func foreignTo(arch string) foreign {
	if arch == "arm64" {
		return foreign{"amd64", "qemu-x86_64", "qemu-x86_64-static", `\x3e\x00`}
	}
	return foreign{"arm64", "qemu-aarch64", "qemu-aarch64-static", `\xb7\x00`}
}

// teller is an image for an architecture with /bin/teller alone, and the program.
func teller(t *testing.T, arch string) (_ v1.Image, program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), "teller")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./teller")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	body, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	img := kit.Image(t, empty.Image, nil, kit.Layer(t, kit.File{Name: "bin/"}, kit.File{Name: "bin/teller", Body: body, Mode: 0o755}))
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.Architecture = arch
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return img, program
}

// handlerName begins the names of the handlers that these tests register. The pid of
// the test process follows.
const handlerName = "holdfast-test-"

// binfmt mounts binfmt_misc where nobody else sees it, and returns its directory. If
// it is mounted nowhere else, its handlers are gone when the directory is closed.
func binfmt(t *testing.T) *os.File {
	t.Helper()
	const path = "/proc/sys/fs/binfmt_misc"
	var dir *os.File
	err := osthread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount("binfmt_misc", path, "binfmt_misc", 0, ""); err != nil {
			return err
		}
		var err error
		dir, err = os.Open(path)
		return err
	})
	if err != nil {
		t.Fatalf("binfmt_misc: %v", err)
	}
	return dir
}

// register lets this machine run the programs of another architecture, until
// unregister is called or the test ends.
func (f foreign) register(t *testing.T) (unregister func()) {
	t.Helper()
	emulator, err := exec.LookPath(f.program)
	if err != nil {
		emulator, err = filepath.Abs(filepath.Join("../../.cache/debian/usr/bin", f.program))
		if err == nil {
			_, err = os.Stat(emulator)
		}
	}
	if err != nil {
		t.Fatalf("%v: run make clients", err)
	}
	dir := binfmt(t)
	// os.WriteFile would try to make the file.
	write := func(name, text string) error {
		file, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = file.WriteString(text)
		return errors.Join(err, file.Close())
	}
	// What a test process left that was killed.
	names, err := dir.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		pid, ours := strings.CutPrefix(name, handlerName)
		if _, err := os.Stat("/proc/" + pid); ours && errors.Is(err, os.ErrNotExist) {
			if err := write(name, "-1"); err != nil {
				t.Fatal(err)
			}
		}
	}
	name := fmt.Sprint(handlerName, os.Getpid())
	unregister = sync.OnceFunc(func() {
		if err := errors.Join(write(name, "-1"), dir.Close()); err != nil {
			t.Errorf("the handler %s can't be removed: %v", name, err)
		}
	})
	magic := `\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00` + f.machine
	mask := `\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff`
	// With F the kernel opens the emulator here, so that a container needs none.
	if err := write("register", ":"+name+":M::"+magic+":"+mask+":"+emulator+":F"); err != nil {
		t.Fatal(errors.Join(err, dir.Close()))
	}
	t.Cleanup(unregister)
	return unregister
}

// The handler is the kernel's, for all processes of this machine. No other test has
// programs of the architecture.
func TestStepsForAnotherPlatformRunWithAHandlerOfBinfmt(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	r := kit.StartRegistry(t, nil)
	f := foreignTo(runtime.GOARCH)
	own, _ := teller(t, runtime.GOARCH)
	other, program := teller(t, f.arch)
	var index v1.ImageIndex = empty.Index
	for arch, img := range map[string]v1.Image{runtime.GOARCH: own, f.arch: other} {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	base := r.PushIndex("base", index)
	dir := files(t, map[string]string{"Dockerfile": "FROM " + base + "\nRUN [\"/bin/teller\", \"arch\", \"/arch\"]\n"})
	platform := "linux/" + f.arch
	// This machine may have a handler of its own.
	always := exec.Command(program, "arch", filepath.Join(t.TempDir(), "arch")).Run() == nil
	refused := func(when string) {
		t.Helper()
		out := tryBuild(t, d, "--no-cache", "--platform", platform, dir)
		for _, want := range []string{platform, "qemu-user-static", f.handler, "binfmt_misc"} {
			if out.Code == 0 || !strings.Contains(out.Stderr, want) {
				t.Errorf("%s: exit code %d, want an error with %q:\n%s", when, out.Code, want, out.Stderr)
			}
		}
	}
	if !always {
		refused("without a handler")
	}
	unregister := f.register(t)
	told := func(path, want string) {
		t.Helper()
		if text, err := os.ReadFile(path); err != nil || string(text) != want+"\n" {
			t.Errorf("%s has %q, %v, want %s", path, text, err, want)
		}
	}

	build(t, d, "--platform", platform, "-t", "foreign", dir)
	if got := d.Docker("image", "inspect", "-f", "{{.Os}}/{{.Architecture}}", "foreign"); got != platform {
		t.Errorf("the image is for %s", got)
	}
	if got := d.Docker("run", "--rm", "--platform", platform, "foreign", "/bin/teller", "arch", "/dev/stdout"); got != f.arch {
		t.Errorf("a container of the image prints %q", got)
	}
	if r := classic(d, "--no-cache", "--platform", platform, "-t", "foreign:old", dir); r.Code != 0 {
		t.Errorf("old client: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	out := t.TempDir()
	both := "linux/" + runtime.GOARCH + "," + platform
	build(t, d, "--platform", both, "--output", "type=local,dest="+out, dir)
	told(filepath.Join(out, "linux_"+runtime.GOARCH, "arch"), runtime.GOARCH)
	told(filepath.Join(out, "linux_"+f.arch, "arch"), f.arch)

	// Several platforms are an index, in a registry and here.
	several := r.Host + "/several"
	build(t, d, "--platform", both, "-t", several, "--push", dir)
	raw := d.Docker("buildx", "imagetools", "inspect", "--raw", several)
	for _, arch := range []string{runtime.GOARCH, f.arch} {
		if !strings.Contains(raw, `"architecture": "`+arch+`"`) {
			t.Errorf("the index has no %s:\n%s", arch, raw)
		}
	}
	build(t, d, "--platform", both, "-t", "here", dir)
	for _, arch := range []string{runtime.GOARCH, f.arch} {
		if got := d.Docker("run", "--rm", "--platform", "linux/"+arch, "here", "/bin/teller", "arch", "/dev/stdout"); got != arch {
			t.Errorf("the variant for %s prints %q", arch, got)
		}
	}

	unregister()
	if always {
		return
	}
	kit.Eventually(t, "the removal of the handler is noticed", func() bool {
		return strings.Contains(tryBuild(t, d, "--no-cache", "--platform", platform, dir).Stderr, f.handler)
	})
	refused("after the handler was removed")
}
