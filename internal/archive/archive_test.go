// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"
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
		"/":       "/ /a/ /a/b/ /link",
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
		t.Error(err) // what was unpacked before the error stays
	}
}

// impatient is a context that ends after its Err was called the given number of
// times.
type impatient struct {
	context.Context
	left int
}

func (c *impatient) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

func TestHolesOfASparseFileEndWithTheRequest(t *testing.T) {
	r, dir := folder(t)
	const size = 256 << 20
	// A few bytes of archive stand for any number of zeros: sparse format 1.0 of
	// GNU tar.
	var b bytes.Buffer
	entry := func(name string, kind byte, content string) {
		head := make([]byte, 512)
		copy(head, name)
		copy(head[100:], fmt.Sprintf("0000644\x00%07o\x00%07o\x00%011o\x0000000000000\x00", os.Getuid(), os.Getgid(), len(content)))
		head[156] = kind
		copy(head[257:], "ustar\x0000")
		b.Write(repair(head))
		b.WriteString(content)
		b.Write(make([]byte, -len(content)&511))
	}
	records := ""
	for _, kv := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=hole", fmt.Sprintf("GNU.sparse.realsize=%d", size)} {
		records += fmt.Sprintf("%d %s\n", len(kv)+4, kv) // the length has two digits in each record
	}
	entry("x", tar.TypeXHeader, records)
	ends := fmt.Sprintf("1\n%d\n0\n", size)
	entry("hole", tar.TypeReg, ends+strings.Repeat("\x00", 512-len(ends)))
	b.Write(make([]byte, 1024))
	err := r.Unpack(&impatient{context.Background(), 100}, "/", &b, UnpackOptions{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("unpacked: %v", err)
	}
	st, err := os.Stat(filepath.Join(dir, "hole"))
	if err != nil || st.Size() == 0 || st.Size() == size {
		t.Errorf("%v, %v", st, err)
	}
}

// entries returns the names in a tar, in order.
func entries(t *testing.T, r io.Reader) (all []string) {
	t.Helper()
	for tr := tar.NewReader(r); ; {
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

// The content of a directory directly follows it, before the next directory
// begins.
func TestArchivesAreDepthFirst(t *testing.T) {
	r, dir := folder(t)
	for _, d := range []string{"a/x/deep", "a/y", "b"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"a/f", "a/x/f", "a/x/deep/f", "a/z", "b/f", "c"} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := "a/ a/f a/x/ a/x/deep/ a/x/deep/f a/x/f a/y/ a/z b/ b/f c"
	var export bytes.Buffer
	if err := r.PackAll(context.Background(), &export); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(entries(t, &export), " "); got != want {
		t.Errorf("export: %s\nwant    %s", got, want)
	}
	if got := strings.Join(names(t, r, "/a"), " "); got != "a/ a/f a/x/ a/x/deep/ a/x/deep/f a/x/f a/y/ a/z" {
		t.Errorf("cp: %s", got)
	}
	image, _ := folder(t)
	changes, err := Changes(context.Background(), image, r, func(string) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	if err := r.PackChanges(context.Background(), changes, &layer); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(entries(t, &layer), " "); got != want {
		t.Errorf("layer: %s\nwant   %s", got, want)
	}
}

// A tree may be deeper than the kernel's maximum path length.
func TestPathsLongerThanTheKernelTakes(t *testing.T) {
	r, dir := folder(t)
	name := strings.Repeat("n", 200)
	at, err := open(unix.AT_FDCWD, dir, unix.O_DIRECTORY)
	if err != nil {
		t.Fatal(err)
	}
	const levels = 60
	for range levels {
		if err := os.Mkdir(self(at)+"/"+name, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := open(int(at.Fd()), name, unix.O_DIRECTORY)
		at.Close()
		if err != nil {
			t.Fatal(err)
		}
		at = next
	}
	if err := os.WriteFile(self(at)+"/end", []byte("end"), 0o644); err != nil {
		t.Fatal(err)
	}
	at.Close()
	last := strings.Repeat(name+"/", levels) + "end"
	check := func(what string, got []string, want string) {
		t.Helper()
		if len(got) != levels+1 || got[levels] != want {
			t.Errorf("%s: %d entries, the last one has %d bytes", what, len(got), len(got[len(got)-1]))
		}
	}
	var export bytes.Buffer
	if err := r.PackAll(context.Background(), &export); err != nil {
		t.Fatal(err)
	}
	check("export", entries(t, &export), last)
	check("cp", names(t, r, "/"+name), last)
	image, _ := folder(t)
	changes, err := Changes(context.Background(), image, r, func(string) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	if n := len(changes); n != levels+1 || changes[n-1].Path != "/"+last {
		t.Errorf("diff: %d changes", n)
	}
	var layer bytes.Buffer
	if err := r.PackChanges(context.Background(), changes, &layer); err != nil {
		t.Fatal(err)
	}
	check("layer", entries(t, &layer), last)
}

// An archive may have paths that are longer than the kernel's maximum, and they
// lead nowhere else.
func TestUnpackPathsLongerThanTheKernelTakes(t *testing.T) {
	r, dir := folder(t)
	outside := t.TempDir()
	long := strings.Repeat(strings.Repeat("n", 200)+"/", 30)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: long + "end", Typeflag: tar.TypeReg, Mode: 0o600},
		{Name: long + "hard", Linkname: long + "end", Typeflag: tar.TypeLink},
		{Name: long + "dir/", Typeflag: tar.TypeDir, Mode: 0o700, ModTime: time.Unix(86400, 0)},
		{Name: long + "away", Linkname: outside, Typeflag: tar.TypeSymlink},
		{Name: long + "dir/last", Linkname: "x", Typeflag: tar.TypeSymlink},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	if err := r.Unpack(context.Background(), "/", bytes.NewReader(b.Bytes()), UnpackOptions{}); err != nil {
		t.Fatal(err)
	}
	at, err := openIn(r.dir, "/"+long, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	if st, err := os.Stat(self(at) + "/hard"); err != nil || st.Sys().(*syscall.Stat_t).Nlink != 2 {
		t.Errorf("the link: %v", err)
	}
	if st, err := os.Stat(self(at) + "/dir"); err != nil || st.Mode().Perm() != 0o700 || st.ModTime().Unix() != 86400 {
		t.Errorf("the folder: %v %v", st, err)
	}

	b.Reset()
	w = tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: long + "away/file", Typeflag: tar.TypeReg, Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := r.Unpack(context.Background(), "/", bytes.NewReader(b.Bytes()), UnpackOptions{}); !errors.Is(err, unix.ELOOP) {
		t.Errorf("through a link at that depth: %v", err)
	}
	for _, d := range []string{outside, filepath.Join(dir, outside)} {
		if list, err := os.ReadDir(d); len(list) > 0 || err != nil && !os.IsNotExist(err) {
			t.Errorf("%s: %v %v", d, list, err)
		}
	}
}
