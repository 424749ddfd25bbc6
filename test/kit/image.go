// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// File is an entry of a layer. If Mode is zero it is 0644 for a file and 0755
// for a directory. The default owner is root.
type File struct {
	Name string // without a leading slash; a directory's name ends in one
	Body []byte
	Link string // a symlink's target
	Mode int64
	UID  int
	GID  int
}

// epoch is the time in built layers and images, so that their digests are the
// same in every test.
var epoch = time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)

// Layer makes a layer of the files, in their order.
func Layer(t testing.TB, files ...File) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.Name, Mode: f.Mode, Uid: f.UID, Gid: f.GID, ModTime: epoch, Typeflag: tar.TypeReg, Size: int64(len(f.Body))}
		switch {
		case f.Link != "":
			h.Typeflag, h.Linkname, h.Size, h.Mode = tar.TypeSymlink, f.Link, 0, 0o777
		case strings.HasSuffix(f.Name, "/"):
			h.Typeflag = tar.TypeDir
			if h.Mode == 0 {
				h.Mode = 0o755
			}
		case h.Mode == 0:
			h.Mode = 0o644
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(f.Body); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil },
		tarball.WithCompressedCaching, tarball.WithCompressionLevel(gzip.BestSpeed))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Image returns base with layers on top and its config changed.
func Image(t testing.TB, base v1.Image, change func(*v1.Config), layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(base, layers...)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.Created = v1.Time{Time: epoch}
	cf.OS, cf.Architecture = "linux", Arch()
	if change != nil {
		change(&cf.Config)
	}
	img, err = mutate.ConfigFile(img, cf)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

var busybox struct {
	sync.Once
	layer v1.Layer
}

// Busybox makes an image of the host's static busybox with all its applets, an
// /etc with the users root, nobody and app (1000:1000), and the command sh.
// change, if not nil, changes the config.
func Busybox(t testing.TB, change func(*v1.Config)) v1.Image {
	t.Helper()
	busybox.Do(func() { busybox.layer = busyboxLayer(t) })
	if busybox.layer == nil {
		t.Fatal("no busybox layer: see the failure of an earlier test")
	}
	base := Image(t, empty.Image, func(c *v1.Config) {
		c.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
		c.Cmd = []string{"sh"}
	}, busybox.layer)
	return Image(t, base, change)
}

func busyboxLayer(t testing.TB) v1.Layer {
	t.Helper()
	const path = "/bin/busybox"
	binary, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: install busybox-static", err)
	}
	applets, err := exec.Command(path, "--list").Output()
	if err != nil {
		t.Fatalf("busybox --list: %v", err)
	}
	files := []File{
		{Name: "bin/"}, {Name: "bin/busybox", Body: binary, Mode: 0o755},
		{Name: "dev/"}, {Name: "etc/"}, {Name: "home/"}, {Name: "home/app/", UID: 1000, GID: 1000},
		{Name: "proc/", Mode: 0o555}, {Name: "root/", Mode: 0o700}, {Name: "sys/", Mode: 0o555},
		{Name: "tmp/", Mode: 0o1777}, {Name: "usr/"}, {Name: "var/"}, {Name: "www/"},
		{Name: "etc/passwd", Body: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\napp:x:1000:1000:app:/home/app:/bin/sh\n")},
		{Name: "etc/group", Body: []byte("root:x:0:\nnobody:x:65534:\napp:x:1000:\nextra:x:2000:app\n")},
		{Name: "www/index.html", Body: []byte("hello from busybox\n")},
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		if applet != "busybox" {
			files = append(files, File{Name: "bin/" + applet, Link: "busybox"})
		}
	}
	return Layer(t, files...)
}

// Archive returns an image in the format of `docker save`, for `docker load`.
func Archive(t testing.TB, ref string, img v1.Image) io.Reader {
	t.Helper()
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := tarball.Write(tag, img, &b); err != nil {
		t.Fatal(err)
	}
	return &b
}

// Load loads an image into the daemon under a name.
func (d *Daemon) Load(ref string, img v1.Image) {
	d.t.Helper()
	d.DockerWith(Archive(d.t, ref, img), "load")
}
