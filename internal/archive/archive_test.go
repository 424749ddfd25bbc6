package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

func folder(t *testing.T) (*Root, string) {
	t.Helper()
	dir := t.TempDir()
	r, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r, dir
}

func names(t *testing.T, r *Root, path string) []string {
	t.Helper()
	var b bytes.Buffer
	if err := r.Pack(context.Background(), path, func(container.PathStat) io.Writer { return &b }); err != nil {
		t.Fatal(err)
	}
	var all []string
	for tr := tar.NewReader(&b); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, h.Name)
	}
}

func TestNamesInAnArchiveBeginAsDockersDo(t *testing.T) {
	r, dir := folder(t)
	if err := os.MkdirAll(dir+"/a/b", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/a/b", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/":       "/ /a/ /link /a/b/",
		"/a":      "a/ a/b/",
		"a/":      "a/ a/b/",
		"/a/.":    "./ ./b/",
		"/a/b/..": "a/ a/b/",
		"../a/b":  "b/",
		"/link":   "link",
		"/link/":  "link/",
		"/link/.": "./",
	} {
		if got := strings.Join(names(t, r, path), " "); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func TestLinksAreFollowedWithinTheTreeAlone(t *testing.T) {
	r, dir := folder(t)
	outside := t.TempDir()
	if err := os.WriteFile(outside+"/f", []byte("out"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"abs": outside, "up": strings.Repeat("../", 30) + outside[1:], "fd": "/proc/self/root" + outside} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Stat("/" + name + "/f"); !os.IsNotExist(err) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := r.Open("/" + name + "/f"); !os.IsNotExist(err) {
			t.Errorf("open through %s: %v", name, err)
		}
	}
	st, err := r.Stat("/abs")
	if err != nil || st.LinkTarget != outside || st.Mode&os.ModeSymlink == 0 {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestChangesLeaveOutWhatWasOnlyMadeToMountOn(t *testing.T) {
	from, _ := folder(t)
	to, dir := folder(t)
	for _, d := range []string{"/dev/pts", "/etc", "/mine/deep"} {
		if err := os.MkdirAll(dir+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(dir+"/etc/hosts", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	made := func(path string) bool {
		return slices.Contains([]string{"/dev", "/dev/pts", "/etc", "/etc/hosts"}, path)
	}
	look := func() string {
		changes, err := Changes(context.Background(), from, to, made)
		if err != nil {
			t.Fatal(err)
		}
		var s []string
		for _, c := range changes {
			s = append(s, c.Kind.String()+" "+c.Path)
		}
		return strings.Join(s, ", ")
	}
	if got := look(); got != "A /mine, A /mine/deep" {
		t.Error(got)
	}
	if err := os.WriteFile(dir+"/etc/mine", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := look(); got != "A /etc, A /etc/mine, A /mine, A /mine/deep" {
		t.Error(got)
	}
}

func TestArchiveThatIsCutShortIsABadOne(t *testing.T) {
	r, dir := folder(t)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "f", Size: 5000, Mode: 0o644, Uid: os.Getuid(), Gid: os.Getgid()}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 5000)); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 100, 512, 1000, 5000} {
		if err := r.Unpack(context.Background(), "/", bytes.NewReader(b.Bytes()[:n]), UnpackOptions{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "f")); err != nil {
		t.Error(err) // what came before stays
	}
}
