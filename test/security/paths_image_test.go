// SPDX-License-Identifier: Apache-2.0

package security

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	moby "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"holdfast/test/kit"
)

// rawLayer is a layer with arbitrary entries, including entries that no builder
// makes.
func rawLayer(t *testing.T, entries ...tar.Header) v1.Layer {
	t.Helper()
	b := rawTar(t, entries...)
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// rawTar is an archive of entries. The content of each file is "evil".
func rawTar(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o6777
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len("evil"))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, "evil"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// unpacked loads an image with a base layer and a layer with the entries. It
// reports whether the image could be unpacked, and then runs a container that
// reads some of it.
func unpacked(t *testing.T, d *kit.Daemon, ref string, layers ...v1.Layer) bool {
	t.Helper()
	cmd := d.DockerCommand(context.Background(), "load")
	cmd.Stdin = kit.Archive(t, ref, kit.Image(t, kit.Busybox(t, nil), nil, layers...))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Logf("%s: refused: %s", ref, bytes.TrimSpace(out))
		return false
	}
	return true
}

func symlink(name, to string) tar.Header {
	return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink, Mode: 0o777}
}

func hardlink(name, to string) tar.Header {
	return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeLink}
}

// CVE-2014-6407: Docker unpacked layers by path, so a symbolic or hard link in
// an image could lead the image's other files to any place on the host. Here
// links of a layer are resolved within the layer's own folder. An entry that
// would lead out is refused or stays inside.
func TestCVE_2014_6407_LayersAreUnpackedNowhereElse(t *testing.T) {
	t.Parallel()
	d := live(t)
	host := hostFolder(t, d)
	for name, entries := range map[string][]tar.Header{
		"through-absolute-link": {symlink("out", host.path), {Name: "out/owned"}, {Name: "out/secret"}},
		"through-relative-link": {symlink("out", climb(host.path)), {Name: "out/owned"}, {Name: "out/in/secret"}},
		"through-two-links":     {symlink("a", "/"), symlink("b", "a"+host.path), {Name: "b/owned"}},
		"name-goes-up":          {{Name: climb(host.path) + "/owned"}},
		"absolute-name":         {{Name: host.path + "/owned"}},
		"hard-link-up":          {hardlink("h", climb(host.path)+"/secret"), {Name: "h"}},
		"hard-link-absolute":    {hardlink("h", host.path+"/secret"), {Name: "h"}},
		"hard-link-by-link":     {symlink("out", host.path), hardlink("h", "out/secret"), {Name: "h"}},
		"folder-on-link":        {symlink("out", host.path), {Name: "out/", Typeflag: tar.TypeDir, Mode: 0o777}, {Name: "out/owned"}},
		"whiteout-through-link": {symlink("out", host.path), {Name: "out/.wh.secret"}, {Name: "out/in/.wh..wh..opq"}},
		"whiteout-goes-up":      {{Name: ".wh..."}, {Name: "in/.wh..."}, {Name: climb(host.path) + "/.wh.secret"}},
	} {
		// The entries are in one layer, and in two layers of which the second
		// is unpacked on the first.
		unpacked(t, d, name, rawLayer(t, entries...), rawLayer(t, entries[1:]...))
		host.untouched(name)
	}
	// The files that the container sees do not belong to the host.
	if unpacked(t, d, "reader", rawLayer(t, symlink("out", host.path), hardlink("h", host.path+"/secret"))) {
		if r := d.TryDocker("run", "--rm", "reader", "cat", "/h", "/out/secret"); strings.Contains(r.Stdout, secret) {
			t.Error("a container reads a file of the host")
		}
	}
}

// CVE-2021-32760: containerd created an entry and then set its mode by name, so
// a hard link to a symbolic link changed the mode of a file on the host. Here
// such an image changes no file outside its layer.
func TestCVE_2021_32760_UnpackingChangesNoModesOfTheHost(t *testing.T) {
	t.Parallel()
	d := live(t)
	host := hostFolder(t, d)
	for name, entries := range map[string][]tar.Header{
		"hard-link-to-a-link":  {symlink("l", host.path+"/secret"), {Name: "h", Linkname: "l", Typeflag: tar.TypeLink, Mode: 0o4777}},
		"hard-link-up":         {symlink("l", climb(host.path)+"/secret"), {Name: "h", Linkname: "l", Typeflag: tar.TypeLink, Mode: 0o4777, Uid: 1000}},
		"link-with-a-mode":     {{Name: "l", Linkname: host.path + "/secret", Typeflag: tar.TypeSymlink, Mode: 0o4777, Uid: 1000}},
		"link-then-a-folder":   {symlink("l", host.path+"/in"), {Name: "l", Typeflag: tar.TypeDir, Mode: 0o1777, Uid: 1000}},
		"link-then-attributes": {symlink("l", host.path+"/secret"), {Name: "l", Linkname: host.path + "/secret", Typeflag: tar.TypeSymlink, PAXRecords: map[string]string{"SCHILY.xattr.user.evil": "1"}}},
	} {
		unpacked(t, d, name, rawLayer(t, entries...))
		host.untouched(name)
	}
}

// CVE-2014-9357: Docker unpacked archives after a chroot into the image and ran
// the program xz there, so an image with its own xz could run it as root of the
// host. Here the engine never runs or loads a file of an image or a container.
func TestCVE_2014_9357_NothingOfAnImageIsRunToUnpack(t *testing.T) {
	t.Parallel()
	d := live(t)
	mark := filepath.Join(d.Root, "mark")
	trap := []byte("#!/bin/sh\necho run >>" + mark + "; echo run >>/mark; cat\n")
	var files []kit.File
	for _, dir := range []string{"bin/", "usr/bin/", "usr/local/bin/", "sbin/"} {
		for _, name := range []string{"xz", "unxz", "unpigz", "pigz", "gzip", "zstd", "bzip2", "tar"} {
			files = append(files, kit.File{Name: dir + name, Body: trap, Mode: 0o755})
		}
	}
	d.Load("trap", kit.Image(t, kit.Busybox(t, nil), nil, kit.Layer(t, files...)))
	d.Docker("run", "-d", "--name", "box", "-v", "/mnt", "trap", "sleep", "1000")
	plain := rawTar(t, tar.Header{Name: "f"})
	for _, packer := range []string{"cat", "gzip", "xz", "bzip2", "zstd"} {
		cmd := exec.Command(packer)
		cmd.Stdin = bytes.NewReader(plain)
		packed, err := cmd.Output()
		if err != nil {
			continue // this machine has no program to make such an archive
		}
		for _, to := range []string{"/", "/mnt"} {
			req, err := http.NewRequest("PUT", "http://d/containers/box/archive?path="+to, bytes.NewReader(packed))
			if err != nil {
				t.Fatal(err)
			}
			res, err := d.HTTP().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
		}
	}
	d.Docker("export", "-o", filepath.Join(d.Root, "box.tar"), "box")
	d.Docker("commit", "box", "made")
	if r := d.TryDocker("exec", "box", "cat", "/mark"); r.Code == 0 {
		t.Errorf("a program of the image was run: %s", r.Stdout)
	}
	if text, err := os.ReadFile(mark); err == nil {
		t.Errorf("a program of the image was run on the host: %s", text)
	}
}

// CVE-2019-14271: Docker's cp loaded the C library's name service modules after
// a chroot into the container, so a library of the container ran as root of the
// host. Here the daemon and the shim load no library at all. They look up users
// by reading files.
func TestCVE_2019_14271_NoLibraryOfAContainerIsLoaded(t *testing.T) {
	t.Parallel()
	d := live(t)
	d.Load("trap", kit.Image(t, kit.Busybox(t, nil), nil, kit.Layer(t,
		kit.File{Name: "etc/nsswitch.conf", Body: []byte("passwd: evil\ngroup: evil\n")},
		kit.File{Name: "lib/libnss_evil.so.2", Body: []byte("evil"), Mode: 0o755},
		kit.File{Name: "lib/x86_64-linux-gnu/libnss_files.so.2", Body: []byte("evil"), Mode: 0o755})))
	d.Docker("run", "-d", "--name", "box", "-u", "app", "trap", "sleep", "1000")
	d.DockerWith(bytes.NewReader(rawTar(t, tar.Header{Name: "f", Uname: "app", Gname: "extra"})), "cp", "-a", "-", "box:/tmp")
	d.Docker("cp", "box:/etc", "-")
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", d.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(maps), ".so") {
		t.Errorf("the daemon has loaded a library:\n%s", maps)
	}
	for _, name := range []string{"holdfastd", "holdfast-shim"} {
		f, err := elf.Open(kit.Binary(t, name))
		if err != nil {
			t.Fatal(err)
		}
		libraries, err := f.ImportedLibraries()
		if err != nil || len(libraries) > 0 {
			t.Errorf("%s is linked with %v (%v)", name, libraries, err)
		}
		f.Close()
	}
}

// CVE-2018-15664: Docker's cp resolved a path in the container and used it
// later. A container that replaced a folder with a link in between could read
// or write files of the host. Here the kernel resolves the path within the
// container's root in the same step that opens it.
func TestCVE_2018_15664_CopyingFollowsNoLinkOutOfTheContainer(t *testing.T) {
	t.Parallel()
	d := live(t)
	host := hostFolder(t, d)
	d.Docker("volume", "create", "vol")
	swapper(t, d, "vol", "mkdir -p x/in; echo mine >x/secret; echo mine >x/in/secret; ln -s "+host.path+" y", "x", "y")
	box := "swap-" + t.Name()
	evil := rawTar(t, tar.Header{Name: "owned"}, tar.Header{Name: "in/", Typeflag: tar.TypeDir, Mode: 0o777}, tar.Header{Name: "in/owned"})
	read, wrote := 0, 0
	// The other process decides when the names are exchanged.
	for i := 0; i < 40 || (read == 0 || wrote == 0) && i < 4000; i++ {
		for _, path := range []string{"/v/x/secret", "/v/x", "/v/x/in/"} {
			res, err := d.HTTP().Get("http://d/containers/" + box + "/archive?path=" + path)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if bytes.Contains(b, []byte(secret)) {
				t.Fatalf("round %d: a file of the host was read through %s", i, path)
			}
			if res.StatusCode == 200 {
				read++
			}
		}
		req, err := http.NewRequest("PUT", "http://d/containers/"+box+"/archive?path=/v/x", bytes.NewReader(evil))
		if err != nil {
			t.Fatal(err)
		}
		res, err := d.HTTP().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode == 200 {
			wrote++
		}
	}
	races(t, d, box)
	if read == 0 || wrote == 0 {
		t.Errorf("%d copies out and %d in: the race did not take place", read, wrote)
	}
	host.untouched("by cp")
}

// CVE-2021-41089: Docker's cp into a crafted container changed the modes of
// files on the host, because it applied modes to folders by name. Here the mode
// is applied to the descriptor of the folder, which was opened within the
// container.
func TestCVE_2021_41089_CopyingChangesNoModesOfTheHost(t *testing.T) {
	t.Parallel()
	d := live(t)
	host := hostFolder(t, d)
	d.Load("evil", kit.Image(t, kit.Busybox(t, nil), nil, kit.Layer(t, kit.File{Name: "abs", Link: host.path}, kit.File{Name: "rel", Link: climb(host.path)}, kit.File{Name: "file", Link: host.path + "/secret"})))
	d.Docker("create", "--name", "stopped", "evil")
	d.Docker("run", "-d", "--name", "running", "evil", "sleep", "1000")
	for _, name := range []string{"stopped", "running"} {
		for _, to := range []string{"/", "/abs", "/rel/in", "/abs/../rel"} {
			cmd := d.DockerCommand(context.Background(), "cp", "-", name+":"+to)
			cmd.Stdin = bytes.NewReader(rawTar(t,
				tar.Header{Name: "abs/", Typeflag: tar.TypeDir, Mode: 0o7777, Uid: 1000}, tar.Header{Name: "rel/in/", Typeflag: tar.TypeDir, Mode: 0o7777, Uid: 1000},
				tar.Header{Name: "file", Mode: 0o7777, Uid: 1000}, tar.Header{Name: "in/", Typeflag: tar.TypeDir, Mode: 0o7777}))
			_ = cmd.Run() // the copy is refused or stays in the container
			host.untouched("by cp to " + name + ":" + to)
		}
	}
}

// CVE-2022-23648: containerd's CRI joined the path of an image's VOLUME to the
// root file system without resolving links, and copied a folder of the host
// into the volume. Here the folder is opened within the image's root.
func TestCVE_2022_23648_VolumesAreFilledFromTheImageAlone(t *testing.T) {
	t.Parallel()
	d := live(t)
	host := hostFolder(t, d)
	for name, path := range map[string]string{"link": "/abs", "relative": "/rel", "below": "/abs/in", "up": "/.." + strings.Repeat("/..", 40) + host.path} {
		d.Load("evil-"+name, kit.Image(t, kit.Busybox(t, nil), func(c *v1.Config) { c.Volumes = map[string]struct{}{path: {}} },
			kit.Layer(t, kit.File{Name: "abs", Link: host.path}, kit.File{Name: "rel", Link: climb(host.path)})))
		r := d.TryDocker("run", "--name", name, "evil-"+name, "sh", "-c", "grep -r '"+secret+"' /abs/ /rel/ "+host.path+" "+path)
		if strings.Contains(r.Stdout, secret) {
			t.Errorf("%s: the volume has files of the host: %s", name, r.Stdout)
		}
		host.untouched(name)
	}
	// A link that the container itself creates must not count later, either.
	d.Docker("run", "--name", "box", image, "ln", "-s", host.path, "/abs")
	d.Docker("commit", "box", "again")
	d.Docker("run", "--rm", "-v", "vol:/abs", "again", "true")
	if r := d.TryDocker("run", "--rm", "-v", "vol:/v", image, "cat", "/v/secret"); r.Code == 0 {
		t.Errorf("the volume has a file of the host: %s", r.Stdout)
	}
}

// Other processes may change the directory of a volume while an image's files
// are copied into it.
func TestImagesFilesAreCopiedIntoNothingButTheVolume(t *testing.T) {
	t.Parallel()
	d := live(t)
	host := hostFolder(t, d)
	shared := filepath.Join(d.Root, "shared")
	if err := os.Mkdir(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	var files []kit.File
	for i := range 12 {
		files = append(files, kit.File{Name: fmt.Sprintf("data/%02d/", i)})
		for j := range 100 {
			files = append(files, kit.File{Name: fmt.Sprintf("data/%02d/owned%d", i, j), Body: []byte("evil")})
		}
	}
	d.Load("evil", kit.Image(t, kit.Busybox(t, nil), nil, kit.Layer(t, append([]kit.File{{Name: "data/"}}, files...)...)))
	// The container replaces each folder with a link as soon as it appears.
	d.Docker("run", "-d", "--name", "racer", "-v", self(t)+":/racer:ro", "-v", shared+":/v", "-e", "SECURITY_ROLE=divert", image, "/racer", "/v", host.path)
	copied, rounds := 0, 0
	// The other process decides when it replaces a folder.
	for i := 0; i < 6 || copied == rounds && i < 60; i++ {
		rounds++
		name := fmt.Sprint("vol", i)
		d.Docker("volume", "create", "-o", "type=none", "-o", "o=bind", "-o", "device="+shared, name)
		if r := d.TryDocker("create", "--name", name, "-v", name+":/data", "evil"); r.Code == 0 {
			copied++
			d.Docker("rm", name)
		}
		host.untouched(fmt.Sprintf("by copy %d", i))
		// Folders that do not have another name yet may still get one.
		for left := true; left; {
			entries, err := os.ReadDir(shared)
			if err != nil {
				t.Fatal(err)
			}
			left = len(entries) > 0
			for _, e := range entries {
				if err := os.RemoveAll(filepath.Join(shared, e.Name())); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	races(t, d, "racer")
	if copied == rounds {
		t.Error("all copies were complete: the race did not take place")
	}
}

func init() {
	roles["divert"] = divert
}

// divert replaces every folder that appears in os.Args[1] with a link to
// os.Args[2].
func divert() {
	dir, to := os.Args[1], os.Args[2]
	for n := 0; ; n++ {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if name := filepath.Join(dir, e.Name()); e.IsDir() && !strings.HasPrefix(e.Name(), "gone") {
				if os.Rename(name, filepath.Join(dir, fmt.Sprint("gone", n, e.Name()))) == nil {
					_ = os.Symlink(to, name)
				}
			}
		}
	}
}

// The walk that measures a volume's size must not leave the volume, and must
// not fail when files are created and removed.
func TestSizeOfAVolumeIsOfTheVolumeAlone(t *testing.T) {
	t.Parallel()
	d := live(t)
	host := hostFolder(t, d)
	if err := os.WriteFile(host.path+"/in/big", make([]byte, 64<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Docker("volume", "create", "vol")
	swapper(t, d, "vol", "mkdir -p x/in; echo mine >x/secret; ln -s "+host.path+" y", "x", "y")
	for i := range 40 {
		var du struct {
			Volumes []struct {
				Name      string
				UsageData struct{ Size int64 }
			}
		}
		getJSON(t, d, "/v1.44/system/df?type=volume", &du)
		for _, v := range du.Volumes {
			if v.Name == "vol" && (v.UsageData.Size < 0 || v.UsageData.Size > 1<<20) {
				t.Fatalf("round %d: %d bytes", i, v.UsageData.Size)
			}
		}
	}
	races(t, d, "swap-"+t.Name())
}

// Users are looked up in files of the container, and these may have any type.
func TestUsersAreLookedUpInRegularFilesOfTheContainerOnly(t *testing.T) {
	t.Parallel()
	d := live(t)
	host := hostFolder(t, d)
	if err := os.WriteFile(host.path+"/passwd", []byte("evil:x:4242:4242::/:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	host.was = host.state()
	for name, layer := range map[string]v1.Layer{
		"absolute": rawLayer(t, symlink("etc/passwd", host.path+"/passwd")),
		"relative": rawLayer(t, symlink("etc/passwd", climb(host.path)+"/passwd")),
		"process":  rawLayer(t, symlink("etc/passwd", "/proc/self/root"+host.path+"/passwd")),
		"fifo":     rawLayer(t, tar.Header{Name: "etc/passwd", Typeflag: tar.TypeFifo, Mode: 0o666}),
		// A read of /dev/full returns zeros without end.
		"device": rawLayer(t, tar.Header{Name: "etc/passwd", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 7}),
	} {
		d.Load(name, kit.Image(t, kit.Busybox(t, nil), nil, layer))
		if r := d.TryDocker("run", "--rm", "-u", "evil", name, "id", "-u"); r.Code == 0 || strings.Contains(r.Stdout, "4242") {
			t.Errorf("%s: %+v", name, r)
		}
	}
	host.untouched("by looking up a user")
}

// CVE-2021-21284: with userns-remap, the root of a container's user namespace
// owned folders of Docker's data root, and could change them to become root of
// the host. Here remapping is refused, and only root can enter the data root.
func TestCVE_2021_21284_NobodyButRootOwnsOrEntersTheDataRoot(t *testing.T) {
	t.Parallel()
	d := kit.New(t, kit.Options{Config: map[string]any{"userns-remap": "default"}})
	if err := d.TryStart(); err == nil || !strings.Contains(d.Log(), "userns-remap") {
		t.Errorf("a daemon with userns-remap: %v\n%s", err, d.Log())
	}
	d = live(t)
	d.Docker("run", "-d", "-v", "vol:/v", image, "sleep", "1000")
	for _, dir := range []string{"", "/containers", "/images", "/volumes"} {
		var st syscall.Stat_t
		if err := syscall.Stat(d.DataRoot+dir, &st); err != nil || st.Uid != 0 || st.Mode&0o027 != 0 {
			t.Errorf("%s: owner %d, mode %o, %v", dir, st.Uid, st.Mode, err)
		}
	}
}

// CVE-2021-41103: every user of the host could enter containerd's folders of
// bundles and root file systems, and run setuid programs of containers. Here
// only root can reach a root file system, through any of the folders above it.
func TestCVE_2021_41103_NobodyButRootEntersABundle(t *testing.T) {
	t.Parallel()
	d := live(t)
	d.Docker("run", "-d", "--name", "box", "-v", "vol:/v", image, "sh", "-c", "cp /bin/busybox /v/root; chmod 4755 /v/root; cp /v/root /root-shell; chmod 4755 /root-shell; sleep 1000")
	box := box{t, d, d.Docker("inspect", "-f", "{{.Id}}", "box")}
	rootfs := filepath.Join(d.ExecRoot, "shim", box.id, "bundle/rootfs")
	kit.Eventually(t, "the files are there", func() bool { _, err := os.Stat(rootfs + "/root-shell"); return err == nil })
	for _, path := range []string{rootfs + "/root-shell", rootfs, filepath.Dir(rootfs) + "/config.json", d.DataRoot + "/volumes/vol/_data/root"} {
		if _, err := os.Stat(path); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/bin/busybox", "stat", "-L", path)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54321, Gid: 54321}}
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "Permission denied") {
			t.Errorf("a user without rights can access %s: %s", path, out)
		}
	}
}

// CVE-2015-3629: when libcontainer started a container again, it followed a
// link that the image had put in the place of a mount point, and mounted over
// the host. Here every start resolves mount points within the container's root,
// whatever the container has put there: a second start, a restart by policy,
// and one by the user.
func TestCVE_2015_3629_MountPointsStayInTheContainerWhenItStartsAgain(t *testing.T) {
	t.Parallel()
	d, runtimes := withRuntimes(t)
	host := hostFolder(t, d)
	for _, runtime := range runtimes {
		d.Docker("run", "-d", "--name", "box", "--runtime", runtime, "-v", "vol:/data/deep/vol", "--tmpfs", "/data/deep/tmp", "--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined",
			"--restart", "on-failure:1", image, "sh", "-c", "umount /data/deep/vol /data/deep/tmp; rm -rf /data; ln -s "+host.path+" /data; exit 1")
		kit.Eventually(t, "the shim has given up", func() bool {
			return d.Docker("inspect", "-f", "{{.State.Status}} {{.RestartCount}}", "box") == "exited 1"
		})
		host.untouched("by a policy's restart under " + runtime)
		d.TryDocker("start", "-a", "box")
		host.untouched("by a second start under " + runtime)
		d.Docker("rm", "-f", "box")
	}
}

// CVE-2021-30465: runc resolved a mount's destination and mounted later. A
// container that replaced a folder of a shared volume with a link could have a
// mount made outside the root, and so see the host's files. Here, with both
// runtimes, a mount below a shared volume is inside the container, or the start
// fails.
func TestCVE_2021_30465_MountsBelowASharedVolumeStayInTheContainer(t *testing.T) {
	t.Parallel()
	d, runtimes := withRuntimes(t)
	for _, runtime := range runtimes {
		raceBelowVolume(t, d, runtime, "x", "mkdir -p x/in; ln -s / y", 8)
	}
}

// raceBelowVolume starts containers with mounts below a folder that another
// container swaps in a shared volume. It searches them for files of the host.
func raceBelowVolume(t *testing.T, d *kit.Daemon, runtime, below, prepare string, rounds int) {
	t.Helper()
	vol := "vol-" + runtime
	d.Docker("volume", "create", vol)
	d.Docker("volume", "create", "inner")
	name := "swap-" + runtime
	d.Docker("run", "-d", "--name", name, "-v", self(t)+":/swap:ro", "-v", vol+":/v", "-e", "SECURITY_ROLE=swap", image, "sh", "-ec", "cd /v; "+prepare+"; exec /swap x y")
	kit.Eventually(t, "the container swaps the names", func() bool {
		_, err := os.Lstat(filepath.Join(d.DataRoot, "volumes", vol, "_data/y"))
		return err == nil
	})
	started := 0
	for i := range rounds {
		b, err := startBox(t, d, &moby.HostConfig{Runtime: runtime, NetworkMode: "none", Tmpfs: map[string]string{"/v/" + below + "/tmp": ""}, Mounts: []mount.Mount{
			{Type: mount.TypeVolume, Source: vol, Target: "/v"},
			{Type: mount.TypeVolume, Source: "inner", Target: "/v/" + below + "/in"},
		}})
		if err == nil {
			started++
			at := fmt.Sprintf("/proc/%d/root", b.pid())
			if _, err := os.Lstat(at + d.DataRoot + "/containers"); err == nil {
				t.Fatalf("round %d: the container has the host's files", i)
			}
			if unmasked := b.unmasked(); unmasked != "" {
				t.Fatalf("round %d: %s", i, unmasked)
			}
		}
		b.remove()
	}
	t.Logf("%s: %d of %d started", runtime, started, rounds)
	races(t, d, name)
	d.Docker("rm", "-f", name)
	// A wrong mount among the host's own mounts is visible here.
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "/volumes/inner/") && strings.HasPrefix(strings.Fields(line)[4], "/in") {
			t.Errorf("mounted on the host: %s", line)
		}
	}
}
