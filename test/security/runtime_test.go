// SPDX-License-Identifier: Apache-2.0

package security

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"holdfast/internal/engine/oci"
	"holdfast/test/kit"
)

func init() {
	roles["syscalls"] = trySysCalls
	roles["overwrite"] = overwritePrograms
	roles["writecgroup"] = writeCgroup
}

// runtimeNames are the names of the runtimes in these tests: the distribution's
// runc and a current one.
var runtimeNames = []string{"runc", "current"}

// daemonOfRuntimes starts a daemon with the distribution's runc and a current
// one. Each is a copy below the daemon's root, so an attack on it does no other
// harm.
func daemonOfRuntimes(t *testing.T) *kit.Daemon {
	t.Helper()
	stock, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal(err)
	}
	d := kit.New(t, kit.Options{LiveRestore: true})
	bin := d.Root + "/bin"
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, from := range map[string]string{"runc": stock, "current": kit.PeerProgram(t, "runc")} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(bin+"/"+name, b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d.SetEnv("PATH=" + bin + ":" + os.Getenv("PATH"))
	d.WriteConfig(map[string]any{"live-restore": true, "runtimes": map[string]any{"current": map[string]any{"path": bin + "/current"}}})
	d.Start()
	d.Load(image, kit.Busybox(t, nil))
	return d
}

// underEachRuntime runs a test with each runtime, and with a daemon of its own
// for each.
func underEachRuntime(t *testing.T, test func(t *testing.T, d *kit.Daemon, runtime string)) {
	t.Helper()
	d := daemonOfRuntimes(t)
	for _, name := range runtimeNames {
		t.Run(name, func(t *testing.T) { test(t, d, name) })
	}
}

// runAndExec runs a script in a new container and in an exec session of a
// running container, each with the flags, and returns what each printed.
// runFlags are flags for run alone.
func runAndExec(t *testing.T, d *kit.Daemon, runtime string, runFlags, flags []string, script ...string) map[string]string {
	t.Helper()
	run := slices.Concat([]string{"run", "--rm", "--runtime", runtime}, runFlags, flags, []string{image}, script)
	out := map[string]string{"run": d.Docker(run...)}
	id := d.Docker(slices.Concat([]string{"run", "-d", "--runtime", runtime}, runFlags, []string{image, "sleep", "600"})...)
	out["exec"] = d.Docker(slices.Concat([]string{"exec"}, flags, []string{id}, script)...)
	d.Docker("rm", "-f", id)
	return out
}

// statusFields parses the fields of /proc/self/status.
func statusFields(text string) map[string]string {
	fields := map[string]string{}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			fields[k] = strings.TrimSpace(v)
		}
	}
	return fields
}

const noCaps = "0000000000000000"

// If the image's list of users had an entry whose name was a number, the number
// stood for that entry's ID, so an image could map "-u 1000" to root. Here a
// number is always an ID, for users and groups.
func TestCVE_2016_3697_NumberIsAnID(t *testing.T) {
	d := daemonOfRuntimes(t)
	d.Load("names", kit.Image(t, kit.Busybox(t, nil), nil, kit.Layer(t,
		kit.File{Name: "etc/passwd", Body: []byte("root:x:0:0:root:/root:/bin/sh\n1000:x:0:0:root:/root:/bin/sh\n")},
		kit.File{Name: "etc/group", Body: []byte("root:x:0:\n2000:x:0:\n3000:x:0:1000\n")},
	)))
	d.Load("user", kit.Image(t, kit.Busybox(t, func(c *v1.Config) { c.User = "1000:2000" }), nil, kit.Layer(t,
		kit.File{Name: "etc/passwd", Body: []byte("1000:x:0:0:root:/root:/bin/sh\n")},
		kit.File{Name: "etc/group", Body: []byte("2000:x:0:\n")},
	)))
	for _, name := range runtimeNames {
		for _, user := range []string{"1000", "1000:2000", "1000:0"} {
			if got := d.Docker("run", "--rm", "--runtime", name, "-u", user, "names", "id", "-u"); got != "1000" {
				t.Errorf("%s: user %s has the ID %s in the container", name, user, got)
			}
		}
		id := d.Docker("run", "-d", "--runtime", name, "--group-add", "2000", "user", "sleep", "600")
		for _, args := range [][]string{{"exec", id}, {"exec", "-u", "1000:2000", id}} {
			s := statusFields(d.Docker(append(args, "cat", "/proc/self/status")...))
			if s["Uid"] != "1000\t1000\t1000\t1000" || s["Gid"] != "2000\t2000\t2000\t2000" {
				t.Errorf("%s: %s: user %s, group %s", name, args, s["Uid"], s["Gid"])
			}
			// runc before 1.2 looks up numeric supplementary groups as names.
			if name == "current" && s["Groups"] != "2000" {
				t.Errorf("%s: %s: groups are %q", name, args, s["Groups"])
			}
		}
		if groups := d.BundleConfig(id).Process.User.AdditionalGids; !slices.Equal(groups, []uint32{2000}) {
			t.Errorf("%s: the specification has the groups %v", name, groups)
		}
		d.Docker("rm", "-f", id)
	}
}

// Ambient capabilities were set for every process, so an unprivileged user kept
// root's. Here the ambient set is always empty, and a process of another user
// than root has no capabilities, also if some were added.
func TestCVE_2016_8867_NoAmbientCapabilities(t *testing.T) {
	underEachRuntime(t, func(t *testing.T, d *kit.Daemon, runtime string) {
		for how, text := range runAndExec(t, d, runtime, []string{"--cap-add", "SYS_ADMIN"}, []string{"-u", "1000"}, "cat", "/proc/self/status") {
			s := statusFields(text)
			for _, set := range []string{"CapAmb", "CapInh", "CapPrm", "CapEff"} {
				if s[set] != noCaps {
					t.Errorf("%s: %s of user %s is %s", how, set, s["Uid"], s[set])
				}
			}
		}
	})
}

// Processes started with inheritable capabilities, so a program whose file has
// inheritable capabilities got them. Here the inheritable set is empty, for
// root and others, privileged or not.
func TestCVE_2022_24769_InheritableSetIsEmpty(t *testing.T) {
	underEachRuntime(t, func(t *testing.T, d *kit.Daemon, runtime string) {
		for _, flags := range [][]string{nil, {"--privileged"}, {"--cap-add", "ALL"}} {
			s := statusFields(d.Docker(slices.Concat([]string{"run", "--rm", "--runtime", runtime}, flags, []string{image, "cat", "/proc/self/status"})...))
			if s["CapInh"] != noCaps || s["CapAmb"] != noCaps {
				t.Errorf("%s: inheritable %s, ambient %s", flags, s["CapInh"], s["CapAmb"])
			}
			if s["CapEff"] == noCaps {
				t.Errorf("%s: root has no capabilities: %v", flags, s)
			}
		}
	})
}

// The capabilities that an exec was given in addition were made inheritable.
// Here the inheritable set of an exec is empty, privileged or not, in any
// container.
func TestCVE_2022_29162_InheritableSetOfExecIsEmpty(t *testing.T) {
	underEachRuntime(t, func(t *testing.T, d *kit.Daemon, runtime string) {
		for _, container := range [][]string{nil, {"--privileged"}} {
			id := d.Docker(slices.Concat([]string{"run", "-d", "--runtime", runtime}, container, []string{image, "sleep", "600"})...)
			for _, flags := range [][]string{nil, {"--privileged"}, {"--privileged", "-u", "1000"}} {
				s := statusFields(d.Docker(slices.Concat([]string{"exec"}, flags, []string{id, "cat", "/proc/self/status"})...))
				if s["CapInh"] != noCaps || s["CapAmb"] != noCaps {
					t.Errorf("exec %s in %s: inheritable %s, ambient %s", flags, container, s["CapInh"], s["CapAmb"])
				}
			}
			d.Docker("rm", "-f", id)
		}
	})
}

// The user's primary group was missing among the supplementary groups, so a
// set-group-ID program could drop it, and with it the permissions that files
// deny to that group. Here it is always among them.
func TestCVE_2022_36109_PrimaryGroupIsAmongTheGroups(t *testing.T) {
	groupsAre(t, map[string]string{"app": "1000 2000", "app:2000": "2000", "1000": "1000 2000", "1000:1000": "1000", "5555": "0", "5555:6666": "6666", "0": "0"})
}

// Supplementary groups were set up wrongly for images with a user, so access
// was granted or denied wrongly. Here the groups are those of the image's
// /etc/group, for the image's user and for exec, too.
func TestCVE_2023_25173_GroupsOfTheImagesUser(t *testing.T) {
	d := daemonOfRuntimes(t)
	d.Load("user", kit.Busybox(t, func(c *v1.Config) { c.User = "app" }))
	for _, name := range runtimeNames {
		id := d.Docker("run", "-d", "--runtime", name, "--group-add", "3000", "user", "sleep", "600")
		for _, args := range [][]string{{"exec", id}, {"exec", "-u", "app", id}} {
			s := statusFields(d.Docker(append(args, "cat", "/proc/self/status")...))
			if s["Groups"] != "1000 2000 3000" || s["Gid"] != "1000\t1000\t1000\t1000" {
				t.Errorf("%s: %s: groups are %q, group is %q", name, args, s["Groups"], s["Gid"])
			}
		}
		s := statusFields(d.Docker("run", "--rm", "--runtime", name, "user", "cat", "/proc/self/status"))
		if s["Groups"] != "1000 2000" {
			t.Errorf("%s: groups of the image's user are %q", name, s["Groups"])
		}
		d.Docker("rm", "-f", id)
	}
}

func groupsAre(t *testing.T, want map[string]string) {
	t.Helper()
	underEachRuntime(t, func(t *testing.T, d *kit.Daemon, runtime string) {
		id := d.Docker("run", "-d", "--runtime", runtime, image, "sleep", "600")
		for user, groups := range want {
			run := d.Docker("run", "--rm", "--runtime", runtime, "-u", user, image, "cat", "/proc/self/status")
			exec := d.Docker("exec", "-u", user, id, "cat", "/proc/self/status")
			for how, text := range map[string]string{"run": run, "exec": exec} {
				if got := statusFields(text)["Groups"]; got != groups {
					t.Errorf("%s -u %s: groups are %q, not %q", how, user, got, groups)
				}
			}
		}
		d.Docker("rm", "-f", id)
	})
}

// A container overwrote the runtime's binary on the host, through /proc/PID/exe
// of the runtime's process in the container. Here a container tries that in a
// loop, and the runtime is made to execute its own binary in the container.
// Runtime, shim and init stay unchanged.
func TestCVE_2019_5736_BinariesStayAsTheyAre(t *testing.T) {
	d := daemonOfRuntimes(t)
	// The interpreter of this script is the runtime itself.
	layer := []kit.File{{Name: "evil", Mode: 0o755, Body: []byte("#!/proc/self/exe\n")}}
	for _, library := range librariesOf(t, d.Root+"/bin/runc", d.Root+"/bin/current") {
		b, err := os.ReadFile(library)
		if err != nil {
			t.Fatal(err)
		}
		layer = append(layer, kit.File{Name: library[1:], Mode: 0o755, Body: b})
	}
	d.Load("evil", kit.Image(t, kit.Busybox(t, nil), nil, kit.Layer(t, layer...)))
	files := []string{d.Root + "/bin/runc", d.Root + "/bin/current", kit.Binary(t, "holdfast-shim"), kit.Binary(t, "holdfast-init"), kit.Binary(t, "holdfastd")}
	before := checksums(t, files)
	for _, name := range runtimeNames {
		t.Run(name, func(t *testing.T) {
			id := d.Docker("run", "-d", "--init", "--runtime", name, "-v", self(t)+":/probe:ro", "-e", "SECURITY_ROLE=overwrite",
				"evil", "/probe", "/proc/1/exe", "/sbin/docker-init")
			for range 5 {
				d.TryDocker("exec", id, "/evil") // may succeed or fail
				d.TryDocker("exec", id, "/proc/self/exe", "events", "none")
			}
			d.TryDocker("run", "--rm", "--runtime", name, "--entrypoint", "/proc/self/exe", "evil", "init")
			d.Docker("exec", id, "touch", "/enough")
			if code := d.Docker("wait", id); code != "0" {
				t.Errorf("the attacker exited with %s: %s", code, d.Docker("logs", id))
			}
			said := d.Docker("logs", id)
			if !strings.Contains(said, "saw ") || strings.Contains(said, "saw 0 ") {
				t.Errorf("the attacker saw no process of the runtime, so the test proves nothing: %s", said)
			}
			if strings.Contains(said, "WROTE") {
				t.Errorf("the attacker wrote: %s", said)
			}
			d.Docker("rm", "-f", id)
		})
	}
	for name, sum := range checksums(t, files) {
		if sum != before[name] {
			t.Errorf("%s has changed", name)
		}
	}
}

// librariesOf returns the shared libraries that programs need.
func librariesOf(t *testing.T, programs ...string) []string {
	t.Helper()
	var out []string
	for _, program := range programs {
		text, err := exec.Command("ldd", program).CombinedOutput()
		if err != nil {
			if strings.Contains(string(text), "not a dynamic executable") {
				continue
			}
			t.Fatalf("ldd %s: %v: %s", program, err, text)
		}
		for field := range strings.FieldsSeq(string(text)) {
			if strings.HasPrefix(field, "/") && !slices.Contains(out, field) {
				out = append(out, field)
			}
		}
	}
	return out
}

// overwritePrograms tries to write to the programs of other processes and to
// files, until /enough exists.
func overwritePrograms() {
	own, _ := os.Readlink("/proc/self/exe")
	write := func(path string) {
		// Open the path as a descriptor first, because the process in it may
		// exit.
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return
		}
		defer unix.Close(fd)
		f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(fd), os.O_WRONLY, 0)
		if err != nil {
			return
		}
		defer f.Close()
		if _, err := f.Write([]byte("#!/bin/false")); err == nil {
			fmt.Println("WROTE", path)
		}
	}
	seen := 0
	for {
		if _, err := os.Stat("/enough"); err == nil {
			break
		}
		procs, _ := filepath.Glob("/proc/[0-9]*/exe")
		for _, exe := range procs {
			target, err := os.Readlink(exe)
			if err != nil || target == own || strings.HasPrefix(target, "/bin/") || strings.HasPrefix(target, "/sbin/") {
				continue
			}
			seen++
			write(exe)
		}
		for _, path := range os.Args[1:] {
			write(path)
		}
	}
	fmt.Println("saw", seen, "times a foreign program")
}

func checksums(t *testing.T, files []string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(b)
		out[name] = hex.EncodeToString(sum[:])
	}
	return out
}

// The runtime's message to its first stage had lengths of 16 bits, so long
// paths in it overwrote other fields and disabled namespaces. Here the
// container has its own namespaces, however long the paths of its mounts are.
func TestCVE_2021_43784_LongPathsLeaveTheNamespaces(t *testing.T) {
	underEachRuntime(t, func(t *testing.T, d *kit.Daemon, runtime string) {
		long := d.Root + strings.Repeat("/"+strings.Repeat("l", 250), 12)
		if err := os.MkdirAll(long, 0o755); err != nil {
			t.Fatal(err)
		}
		args := []string{"run", "--rm", "--runtime", runtime, "-e", "LONG=" + strings.Repeat("x", 70_000)}
		for i := range 40 {
			args = append(args, "-v", long+":/mnt"+strconv.Itoa(i)+strings.Repeat("/"+strings.Repeat("m", 250), 5))
		}
		out := d.Docker(append(args, image, "sh", "-c", "for n in /proc/self/ns/*; do readlink $n; done; grep Cap /proc/self/status")...)
		for _, kind := range []string{"mnt", "net", "pid", "uts", "ipc"} {
			host, err := os.Readlink("/proc/self/ns/" + kind)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(out, host) || !strings.Contains(out, kind+":[") {
				t.Errorf("the container is in the host's %s namespace:\n%s", kind, out)
			}
		}
		if s := statusFields(out); s["CapEff"] != "00000000a80425fb" {
			t.Errorf("capabilities are %s", s["CapEff"])
		}
	})
}

// Some containers without a cgroup namespace could write to the host's cgroup
// tree. Here it is read-only in every container that is not privileged, with
// the host's cgroup namespace and with one of its own.
func TestCVE_2023_25809_CgroupsAreReadOnly(t *testing.T) {
	underEachRuntime(t, func(t *testing.T, d *kit.Daemon, runtime string) {
		for _, ns := range []string{"host", "private"} {
			out := d.Docker("run", "--rm", "--runtime", runtime, "--cgroupns", ns,
				"-v", self(t)+":/probe:ro", "-e", "SECURITY_ROLE=writecgroup", image, "/probe")
			if !strings.HasPrefix(out, "tried ") || strings.HasPrefix(out, "tried 0") || strings.Contains(out, "WROTE") {
				t.Errorf("cgroup namespace %s: %s", ns, out)
			}
		}
	})
}

// writeCgroup tries to create a group and to write to a file in each hierarchy.
func writeCgroup() {
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	tried := 0
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		// The parent of the v1 mounts is a tmpfs of the container.
		if !strings.Contains(line, " - cgroup") {
			continue
		}
		tried++
		if err := os.Mkdir(f[4]+"/escape", 0o755); !errors.Is(err, unix.EROFS) {
			defer fmt.Println("WROTE: mkdir in", f[4], err)
		}
		for _, name := range []string{"cgroup.procs", "release_agent", "notify_on_release"} {
			if err := unix.Access(f[4]+"/"+name, unix.W_OK); err != nil && err != unix.EROFS && err != unix.ENOENT && err != unix.EACCES || err == nil {
				defer fmt.Println("WROTE:", f[4]+"/"+name, err)
			}
		}
	}
	fmt.Println("tried", tried)
}

// A directory of the host that the runtime had left open became the working
// directory by the path /proc/self/fd/N, and from there the host's root could
// be reached. Here such a start fails or stays within the container, by run and
// exec, named directly or by a link in the image.
func TestCVE_2024_21626_NoDescriptorIsAWayOut(t *testing.T) {
	d := daemonOfRuntimes(t)
	var links []kit.File
	for n := 3; n < 12; n++ {
		links = append(links, kit.File{Name: "link" + strconv.Itoa(n), Link: "/proc/self/fd/" + strconv.Itoa(n)})
	}
	d.Load("links", kit.Image(t, kit.Busybox(t, nil), nil, kit.Layer(t, links...)))
	marker := d.Root + "/marker"
	if err := os.WriteFile(marker, []byte("the host's"), 0o644); err != nil {
		t.Fatal(err)
	}
	look := []string{"cat", strings.Repeat("../", 12) + marker[1:]}
	for _, name := range runtimeNames {
		t.Run(name, func(t *testing.T) {
			out := func(what string, r kit.Result) {
				t.Helper()
				if strings.Contains(r.Stdout, "the host's") {
					t.Errorf("%s: leads to the host's files", what)
				}
				if r.Code == 0 {
					t.Errorf("%s: %q", what, r.Stdout)
				}
			}
			id := d.Docker("run", "-d", "--runtime", name, "links", "sleep", "600")
			for n := 3; n < 12; n++ {
				for _, dir := range []string{fmt.Sprint("/proc/self/fd/", n), fmt.Sprint("/link", n)} {
					out("exec -w "+dir, d.TryDocker(slices.Concat([]string{"exec", "-w", dir, id}, look)...))
				}
			}
			for n := 5; n < 10; n++ {
				dir := fmt.Sprint("/proc/self/fd/", n)
				out("run -w "+dir, d.TryDocker(slices.Concat([]string{"run", "--rm", "--runtime", name, "-w", dir, "links"}, look)...))
			}
			out("run -w /link7", d.TryDocker(slices.Concat([]string{"run", "--rm", "--runtime", name, "-w", "/link7", "links"}, look)...))
			// A new process has only the descriptors of its standard streams,
			// and here that of the directory that ls reads.
			for _, args := range [][]string{{"exec", id}, {"run", "--rm", "--runtime", name, image}} {
				if got := d.Docker(append(args, "ls", "/proc/self/fd")...); got != "0\n1\n2\n3" {
					t.Errorf("%s: descriptors are %q", args[0], got)
				}
			}
			d.Docker("rm", "-f", id)
		})
	}
}

// The configuration of an image contained host options, which the daemon
// applied, so an image could choose its own confinement. Here only the fields
// that an image may set are taken from its configuration.
func TestCVE_2014_6408_ImageChoosesNoConfinement(t *testing.T) {
	d := daemonOfRuntimes(t)
	host := map[string]any{
		"Privileged": true, "CapAdd": []string{"ALL"}, "NetworkMode": "host", "PidMode": "host", "Binds": []string{"/:/host"},
		"SecurityOpt": []string{"seccomp=unconfined", "apparmor=unconfined", "label=disable"},
	}
	d.DockerWith(archiveWithConfig(t, "boastful", func(config map[string]any) {
		for _, of := range []map[string]any{config, config["config"].(map[string]any)} {
			of["HostConfig"], of["hostConfig"] = host, host
			for k, v := range host {
				of[k] = v
			}
		}
		config["container_config"] = config["config"]
	}), "load")
	for _, name := range runtimeNames {
		out := d.Docker("run", "--rm", "--runtime", name, "boastful", "sh", "-c", "cat /proc/self/status; readlink /proc/self/ns/net; readlink /proc/self/ns/pid; ls /host 2>&1; true")
		s := statusFields(out)
		if s["CapEff"] != "00000000a80425fb" || s["CapBnd"] != "00000000a80425fb" || s["Seccomp"] != "2" {
			t.Errorf("%s: capabilities %s of %s, seccomp %s", name, s["CapEff"], s["CapBnd"], s["Seccomp"])
		}
		for _, kind := range []string{"net", "pid"} {
			if host, _ := os.Readlink("/proc/self/ns/" + kind); strings.Contains(out, host) {
				t.Errorf("%s: in the host's %s namespace", name, kind)
			}
		}
		if !strings.Contains(out, "No such file") {
			t.Errorf("%s: has the host's files", name)
		}
	}
}

// archiveWithConfig is the archive of an image with a changed configuration.
func archiveWithConfig(t *testing.T, ref string, change func(config map[string]any)) io.Reader {
	t.Helper()
	parts := map[string][]byte{}
	var order []string
	r := tar.NewReader(kit.Archive(t, ref, kit.Busybox(t, nil)))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		parts[h.Name] = b
		order = append(order, h.Name)
	}
	var manifest []map[string]any
	decodeJSON(t, parts["manifest.json"], &manifest)
	name := manifest[0]["Config"].(string)
	var config map[string]any
	decodeJSON(t, parts[name], &config)
	change(config)
	b, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	renamed := "sha256:" + hex.EncodeToString(sum[:])
	manifest[0]["Config"] = renamed
	if parts["manifest.json"], err = json.Marshal(manifest); err != nil {
		t.Fatal(err)
	}
	parts[renamed] = b
	order[slices.Index(order, name)] = renamed
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range order {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(parts[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(parts[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &out
}

func decodeJSON(t *testing.T, b []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatal(err)
	}
}

// callAttempts are system calls by which flaws of the kernel were exploited.
var callAttempts = map[string]func() unix.Errno{
	"unshare user":   func() unix.Errno { return sysCall(unix.SYS_UNSHARE, unix.CLONE_NEWUSER) },
	"unshare cgroup": func() unix.Errno { return sysCall(unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP) },
	"unshare mount":  func() unix.Errno { return sysCall(unix.SYS_UNSHARE, unix.CLONE_NEWNS) },
	"clone user": func() unix.Errno {
		return endChild(rawSysCall(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD), 0, 0))
	},
	"clone3":            func() unix.Errno { return sysCall(unix.SYS_CLONE3) },
	"mount cgroup":      func() unix.Errno { return tryMount("cgroup") },
	"mount tmpfs":       func() unix.Errno { return tryMount("tmpfs") },
	"umount2":           func() unix.Errno { return sysCall(unix.SYS_UMOUNT2, cString("/proc"), unix.MNT_DETACH) },
	"fsopen":            func() unix.Errno { return sysCall(unix.SYS_FSOPEN, cString("ext4")) },
	"fsconfig":          func() unix.Errno { return sysCall(unix.SYS_FSCONFIG, 0) },
	"open_tree":         func() unix.Errno { return sysCall(unix.SYS_OPEN_TREE, ^uintptr(99), cString("/"), 1) },
	"move_mount":        func() unix.Errno { return sysCall(unix.SYS_MOVE_MOUNT) },
	"pivot_root":        func() unix.Errno { return sysCall(unix.SYS_PIVOT_ROOT, cString("/"), cString("/tmp")) },
	"setns":             func() unix.Errno { return sysCall(unix.SYS_SETNS) },
	"keyctl":            func() unix.Errno { return sysCall(unix.SYS_KEYCTL, 0, ^uintptr(2)) },
	"add_key":           func() unix.Errno { return sysCall(unix.SYS_ADD_KEY) },
	"request_key":       func() unix.Errno { return sysCall(unix.SYS_REQUEST_KEY) },
	"io_uring_setup":    func() unix.Errno { return sysCall(unix.SYS_IO_URING_SETUP) },
	"io_uring_enter":    func() unix.Errno { return sysCall(unix.SYS_IO_URING_ENTER, ^uintptr(0)) },
	"io_uring_register": func() unix.Errno { return sysCall(unix.SYS_IO_URING_REGISTER, ^uintptr(0)) },
	"socket vsock":      func() unix.Errno { return sysCall(unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM) },
	"socket alg":        func() unix.Errno { return sysCall(unix.SYS_SOCKET, unix.AF_ALG, unix.SOCK_SEQPACKET) },
	"socket inet":       func() unix.Errno { return sysCall(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM) },
	"bpf":               func() unix.Errno { return sysCall(unix.SYS_BPF) },
	"perf_event_open":   func() unix.Errno { return sysCall(unix.SYS_PERF_EVENT_OPEN) },
	"userfaultfd":       func() unix.Errno { return sysCall(unix.SYS_USERFAULTFD, 1) },
	"open_by_handle_at": func() unix.Errno { return sysCall(unix.SYS_OPEN_BY_HANDLE_AT) },
	"init_module":       func() unix.Errno { return sysCall(unix.SYS_INIT_MODULE) },
	"finit_module":      func() unix.Errno { return sysCall(unix.SYS_FINIT_MODULE, ^uintptr(0)) },
	"kexec_load":        func() unix.Errno { return sysCall(unix.SYS_KEXEC_LOAD) },
	"syslog":            func() unix.Errno { return sysCall(unix.SYS_SYSLOG, 10) },
	"swapon":            func() unix.Errno { return sysCall(unix.SYS_SWAPON, cString("/none")) },
	"acct":              func() unix.Errno { return sysCall(unix.SYS_ACCT, cString("/none")) },
	"settimeofday":      func() unix.Errno { return sysCall(unix.SYS_SETTIMEOFDAY, 1) },
	"personality":       func() unix.Errno { return sysCall(unix.SYS_PERSONALITY, 0x0400000) },
}

func sysCall(number uintptr, args ...uintptr) unix.Errno {
	var a [6]uintptr
	copy(a[:], args)
	_, _, err := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5])
	return err
}

func rawSysCall(number, a, b, c uintptr) (uintptr, unix.Errno) {
	r, _, err := unix.RawSyscall6(number, a, b, c, 0, 0, 0)
	return r, err
}

// endChild ends a process that a clone created.
func endChild(r uintptr, err unix.Errno) unix.Errno {
	if err == 0 && r == 0 {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	return err
}

func tryMount(kind string) unix.Errno {
	return sysCall(unix.SYS_MOUNT, cString("none"), cString("/tmp"), cString(kind), 0, 0)
}

func cString(s string) uintptr {
	b, _ := unix.BytePtrFromString(s)
	keptBytes = append(keptBytes, b)
	return uintptr(unsafe.Pointer(b))
}

// keptBytes keeps buffers alive that a system call got by address.
var keptBytes []*byte

// trySysCalls prints the error of each attempt named in the arguments. Each
// attempt is made in a process of its own.
func trySysCalls() {
	if len(os.Args) == 2 {
		fmt.Printf("%d\n", callAttempts[os.Args[1]]())
		return
	}
	for _, name := range os.Args[1:] {
		out, err := exec.Command("/proc/self/exe", name).Output()
		if err != nil {
			fmt.Printf("%s=%v\n", name, err)
			continue
		}
		fmt.Printf("%s=%s", name, out)
	}
}

// callsAreRefused runs callAttempts with both runtimes. It checks that each
// fails with the error in a container with default options, by run and by exec,
// and in a container with another user. The attempts in open must succeed
// without the filter.
func callsAreRefused(t *testing.T, want map[string]unix.Errno, open ...string) {
	t.Helper()
	d := daemonOfRuntimes(t)
	try := func(flags []string, names ...string) map[string]string {
		t.Helper()
		out := map[string]string{}
		// A single argument would be taken for an attempt.
		args := slices.Concat([]string{"run", "--rm", "-v", self(t) + ":/probe:ro", "-e", "SECURITY_ROLE=syscalls"}, flags,
			[]string{image, "/probe", "socket inet"}, names)
		for line := range strings.Lines(d.Docker(args...)) {
			name, result, _ := strings.Cut(strings.TrimSpace(line), "=")
			out[name] = result
		}
		if out["socket inet"] != "0" {
			t.Errorf("%s: a plain socket fails: %v", flags, out)
		}
		return out
	}
	names := make([]string, 0, len(want))
	for name := range want {
		names = append(names, name)
	}
	for _, runtime := range runtimeNames {
		for _, flags := range [][]string{{"--runtime", runtime}, {"--runtime", runtime, "-u", "1000"}} {
			got := try(flags, names...)
			for name, errno := range want {
				if got[name] != strconv.Itoa(int(errno)) {
					t.Errorf("%s: %s: error %s, not %d", flags, name, got[name], errno)
				}
			}
		}
	}
	if len(open) > 0 {
		got := try([]string{"--security-opt", "seccomp=unconfined"}, open...)
		for _, name := range open {
			if got[name] == strconv.Itoa(int(want[name])) {
				t.Errorf("%s fails without the filter, too, so its failure proves nothing", name)
			}
		}
	}
}

// A container created a user namespace, mounted a cgroup tree there and set its
// release agent, which the kernel runs as root of the host. Here neither is
// possible, because the filter refuses unshare and mount.
func TestCVE_2022_0492_NoNamespaceForAReleaseAgent(t *testing.T) {
	callsAreRefused(t, map[string]unix.Errno{
		"unshare user": unix.EPERM, "unshare cgroup": unix.EPERM, "unshare mount": unix.EPERM, "clone user": unix.EPERM,
		"mount cgroup": unix.EPERM, "mount tmpfs": unix.EPERM, "umount2": unix.EPERM, "setns": unix.EPERM, "pivot_root": unix.EPERM,
	}, "unshare user", "clone user")
}

// The length of a mount option underflowed in fsconfig, for processes that may
// mount in a user namespace. Here the calls of that kind are refused.
func TestCVE_2022_0185_NoMountByPieces(t *testing.T) {
	callsAreRefused(t, map[string]unix.Errno{
		"fsopen": unix.EPERM, "fsconfig": unix.EPERM, "open_tree": unix.EPERM, "move_mount": unix.EPERM, "unshare user": unix.EPERM,
	}, "unshare user")
}

// Keyrings are not separated between containers, and their system calls had
// races and reference leaks. Here all three calls are refused.
func TestCVE_2014_9529_NoKeyrings(t *testing.T) {
	callsAreRefused(t, map[string]unix.Errno{"keyctl": unix.EPERM, "add_key": unix.EPERM, "request_key": unix.EPERM}, "keyctl", "add_key", "request_key")
}

// Replacing a keyring leaked a reference, until the counter overflowed and the
// keyring was used after it was freed. Here the call is refused.
func TestCVE_2016_0728_NoKeyringIsReplaced(t *testing.T) {
	callsAreRefused(t, map[string]unix.Errno{"keyctl": unix.EPERM}, "keyctl")
}

// Buffers that were registered with io_uring gave access to memory beyond them;
// io_uring had many other flaws as well. Here its three calls are refused.
func TestCVE_2023_2598_NoIoUring(t *testing.T) {
	callsAreRefused(t, map[string]unix.Errno{"io_uring_setup": unix.EPERM, "io_uring_enter": unix.EPERM, "io_uring_register": unix.EPERM}, "io_uring_setup", "io_uring_enter")
}

// Sockets of VSOCK are not separated by network namespaces and lead to the
// hypervisor. Sockets of the kernel's cryptography had flaws that wrote to
// pages of files. The filter refuses both families, and no others.
func TestSocketsThatNamespacesDoNotHold(t *testing.T) {
	callsAreRefused(t, map[string]unix.Errno{"socket vsock": unix.EPERM, "socket alg": unix.EPERM}, "socket vsock", "socket alg")
}

// The flags of clone3 are in memory, where a filter can't read them. The call
// fails with ENOSYS, so that libraries use clone, which can be filtered.
func TestClone3IsUnknown(t *testing.T) {
	callsAreRefused(t, map[string]unix.Errno{"clone3": unix.ENOSYS, "clone user": unix.EPERM}, "clone3")
}

// The verifier of BPF programs and other large interfaces of the kernel had
// flaws by which a user became root. Here they are refused to containers.
func TestCVE_2017_16995_NoLargeDoorsOfTheKernel(t *testing.T) {
	callsAreRefused(t, map[string]unix.Errno{
		"bpf": unix.EPERM, "perf_event_open": unix.EPERM, "userfaultfd": unix.EPERM, "init_module": unix.EPERM, "finit_module": unix.EPERM,
		"kexec_load": unix.EPERM, "syslog": unix.EPERM, "swapon": unix.EPERM, "acct": unix.EPERM, "settimeofday": unix.EPERM, "personality": unix.EPERM,
	}, "userfaultfd", "personality")
}

// A container opened files of the host by guessed handles, because the kernel
// looks handles up in the whole file system. Here the call is refused, and the
// capability for it is not granted.
func TestCVE_2014_3519_NoFilesByHandle(t *testing.T) {
	callsAreRefused(t, map[string]unix.Errno{"open_by_handle_at": unix.EPERM})
}

// Counters of power consumption and interrupts revealed the work of other
// processes, including their keys. Here they are hidden or read-only in a
// container, like other files that reveal or change the host.
func TestCVE_2020_8694_CountersOfTheHostAreMasked(t *testing.T) {
	underEachRuntime(t, func(t *testing.T, d *kit.Daemon, runtime string) {
		id := d.Docker("run", "-d", "--runtime", runtime, image, "sleep", "600")
		s := d.BundleConfig(id)
		for _, path := range []string{"/sys/devices/virtual/powercap", "/proc/interrupts", "/sys/firmware", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/timer_stats", "/proc/scsi"} {
			if !slices.Contains(s.Linux.MaskedPaths, path) {
				t.Errorf("%s is not masked", path)
			}
		}
		// A masked directory is empty, and a masked file has no content.
		out := d.Docker(slices.Concat([]string{"exec", id, "sh", "-c", `for p; do if [ -d $p ]; then ls -A $p; elif [ -e $p ]; then cat $p; fi; done`, "-"}, s.Linux.MaskedPaths)...)
		if out != "" {
			t.Errorf("masked paths show %q", out)
		}
		mounts := d.Docker("exec", id, "cat", "/proc/self/mountinfo")
		for _, path := range []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"} {
			// The last mount on a path is the visible one.
			i := strings.LastIndex(mounts, " "+path+" ")
			if _, err := os.Stat(path); err != nil && slices.Contains(s.Linux.ReadonlyPaths, path) {
				continue // this kernel has no such file
			}
			if !slices.Contains(s.Linux.ReadonlyPaths, path) || i < 0 || !strings.HasPrefix(mounts[i:], " "+path+" ro,") {
				t.Errorf("%s is writable:\n%s", path, mounts)
			}
		}
		d.Docker("rm", "-f", id)
	})
}

// At its start and in its info the daemon names the runtimes with known flaws.
// Neither its start nor restarts wait for a runtime that does not answer.
func TestRuntimesWithKnownFlawsAreNamed(t *testing.T) {
	d := kit.New(t, kit.Options{LiveRestore: true})
	script := func(name, text string) string {
		path := d.Root + "/" + name
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	runtimes := map[string]any{}
	for name, text := range map[string]string{
		"old": "echo runc version 1.1.11", "new": "echo runc version 1.5.1", "strange": "echo something else", "broken": "exit 1",
	} {
		runtimes[name] = map[string]any{"path": script(name, text)}
	}
	// The runtime answers when the FIFO is opened, which is after the start.
	fifo := d.Root + "/answer"
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	runtimes["slow"] = map[string]any{"path": script("slow", "read x <"+fifo)}
	d.WriteConfig(map[string]any{"live-restore": true, "runtimes": runtimes})
	d.Start()

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	info := func() []string {
		t.Helper()
		var said struct{ Warnings []string }
		decodeJSON(t, []byte(d.Docker("info", "-f", "{{json .}}")), &said)
		return slices.DeleteFunc(said.Warnings, func(w string) bool { return !strings.Contains(w, "CVE-") })
	}
	const flaws = "(CVE-2025-31133, CVE-2025-52565, CVE-2025-52881, CVE-2024-21626)"
	warnings := info()
	if !slices.ContainsFunc(warnings, func(w string) bool {
		return strings.HasPrefix(w, `WARNING: the runtime "old" (`+d.Root+`/old) is not safe: runc 1.1.11`) && strings.Contains(w, flaws)
	}) {
		t.Errorf("info doesn't name the old runtime: %q", warnings)
	}
	for _, name := range []string{"new", "strange", "broken", "slow"} {
		if slices.ContainsFunc(warnings, func(w string) bool { return strings.Contains(w, `"`+name+`"`) }) {
			t.Errorf("info names %s: %q", name, warnings)
		}
	}
	untilLogged(ctx, t, d, `the runtime \"old\"`)

	// Another file at the same path is another runtime.
	if err := os.Rename(d.Root+"/new", d.Root+"/old"); err != nil {
		t.Fatal(err)
	}
	if warnings := info(); slices.ContainsFunc(warnings, func(w string) bool { return strings.Contains(w, `"old"`) }) {
		t.Errorf("the runtime was replaced, but info shows %q", warnings)
	}
}

// untilLogged waits until the daemon has logged a text.
func untilLogged(ctx context.Context, t *testing.T, d *kit.Daemon, want string) {
	t.Helper()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for !strings.Contains(d.Log(), want) {
		select {
		case <-again.C:
		case <-ctx.Done():
			t.Fatalf("the daemon did not log %q:\n%s", want, d.Log())
		}
	}
}

// Files were masked by a mount of the container's /dev/null, and a link in its
// place was followed, so another file of /proc became visible and writable.
// Here a current runtime accepts nothing but the device, and the daemon warns
// of an older one.
func TestCVE_2025_31133_MasksAreTheNullDevice(t *testing.T) {
	d := daemonOfRuntimes(t)
	warnsOf(t, d, "CVE-2025-31133")
	dev := d.Root + "/dev"
	if err := os.Mkdir(dev, 0o755); err != nil {
		t.Fatal(err)
	}
	// Following this link would do no harm.
	if err := os.Symlink("/proc/sys/kernel/osrelease", dev+"/null"); err != nil {
		t.Fatal(err)
	}
	r := d.TryDocker("run", "--rm", "--runtime", "current", "-v", dev+":/dev", image, "cat", "/proc/keys", "/proc/timer_list", "/proc/kcore")
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(r.Stdout, strings.TrimSpace(string(kernel))) {
		t.Errorf("a masked file has the content of the link's target: %q", r.Stdout)
	}
}

// The mount of the container's console followed a link that a racing container
// had put in its place. The race is within the runtime. A current runtime is
// not affected, and the daemon warns of an older one.
func TestCVE_2025_52565_ConsoleIsATerminal(t *testing.T) {
	d := daemonOfRuntimes(t)
	warnsOf(t, d, "CVE-2025-52565")
	for _, name := range runtimeNames {
		out := d.Docker("run", "--rm", "-t", "--runtime", name, image, "sh", "-c", "stat -c %F /dev/console; grep ' /dev/console ' /proc/self/mountinfo")
		if !strings.Contains(out, "character special file") || !strings.Contains(out, " devpts ") {
			t.Errorf("%s: the console is %q", name, out)
		}
	}
}

// The runtime's writes to /proc, such as a security label, went to another file
// of /proc that a racing container had mounted there. The race is within the
// runtime. A current runtime writes to verified files, and the daemon warns of
// an older one.
func TestCVE_2025_52881_WritesGoWhereTheyShould(t *testing.T) {
	d := daemonOfRuntimes(t)
	warnsOf(t, d, "CVE-2025-52881")
	for _, name := range runtimeNames {
		for _, over := range []string{"/proc", "/proc/self/attr", "/proc/sys/net"} {
			r := d.TryDocker("run", "--rm", "--runtime", name, "-v", d.Root+":"+over, image, "true")
			if r.Code == 0 {
				t.Errorf("%s: a folder can be mounted at %s", name, over)
			}
		}
	}
}

// warnsOf checks that info names a flaw for the distribution's runtime, if its
// version has the flaw, and not for the current one.
func warnsOf(t *testing.T, d *kit.Daemon, flaw string) {
	t.Helper()
	says, err := exec.Command(d.Root+"/bin/runc", "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	var said struct{ Warnings []string }
	decodeJSON(t, []byte(d.Docker("info", "-f", "{{json .}}")), &said)
	for name, has := range map[string]bool{"runc": strings.Contains(oci.RuntimeFlaws(string(says)), flaw), "current": false} {
		if got := slices.ContainsFunc(said.Warnings, func(w string) bool {
			return strings.Contains(w, strconv.Quote(name)) && strings.Contains(w, flaw)
		}); got != has {
			t.Errorf("info names %s for the runtime %s: %t, not %t: %q", flaw, name, got, has, said.Warnings)
		}
	}
}
