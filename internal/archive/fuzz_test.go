// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"
)

// ground is where one hostile archive is unpacked: a tree with links that lead
// out of it, and next to it a directory that must not change.
type ground struct {
	tree, outside string
	before        string // result of describe for outside
}

// secret is the content of the files outside the tree.
const secret = "s3cr3t"

func newGround(t testing.TB) *ground {
	t.Helper()
	dir := t.TempDir()
	g := &ground{tree: dir + "/tree", outside: dir + "/outside"}
	for _, d := range []string{g.tree + "/real/deep", g.outside + "/dir"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for f, content := range map[string]string{g.tree + "/real/file": "inside", g.outside + "/file": secret, g.outside + "/dir/file": secret} {
		if err := os.WriteFile(f, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{
		"abs": g.outside, "up": "../outside", "absfile": g.outside + "/file", "upfile": "../outside/file",
		"root": "/proc/self/root", "loop": "loop", "in": "/real", "real/back": "../../outside", "gone": "../outside/new",
	} {
		if err := os.Symlink(to, g.tree+"/"+name); err != nil {
			t.Fatal(err)
		}
	}
	g.before = describe(t, g.outside)
	return g
}

// describe returns everything of a directory that writing through a link, a hard
// link or a changed attribute would change.
func describe(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %o %d:%d links %d size %d time %v\n", path, st.Mode, st.Uid, st.Gid, st.Nlink, st.Size, st.Mtim)
		names := make([]byte, 256)
		if n, err := unix.Llistxattr(path, names); err == nil {
			fmt.Fprintf(&b, "attributes %q\n", names[:n])
		}
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			content, err := os.ReadFile(path)
			fmt.Fprintf(&b, "content %q\n", content)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// untouched fails if anything outside the tree was changed.
func (g *ground) untouched(t *testing.T) {
	t.Helper()
	if after := describe(t, g.outside); after != g.before {
		t.Errorf("what is outside the tree was changed, from\n%s\nto\n%s", g.before, after)
	}
}

// unpack unpacks an archive into the tree and checks what must hold for any
// archive.
func (g *ground) unpack(t *testing.T, archive []byte, into string, o UnpackOptions) error {
	t.Helper()
	r, err := OpenFolder(g.tree)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	err = r.Unpack(context.Background(), into, bytes.NewReader(archive), o)
	g.untouched(t)
	if t.Failed() {
		return err
	}

	// The result can be packed again, and has nothing from outside.
	var packed bytes.Buffer
	if err := r.PackAll(context.Background(), &packed); err != nil {
		if errors.Is(err, unix.ENAMETOOLONG) {
			return err
		}
		t.Fatalf("pack: %v", err)
	}
	for tr := tar.NewReader(bytes.NewReader(packed.Bytes())); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("what was packed can't be read: %v", err)
		}
		if !filepath.IsLocal(h.Name) {
			t.Errorf("packed under the name %q", h.Name)
		}
		if content, err := io.ReadAll(tr); err != nil || bytes.Equal(content, []byte(secret)) {
			t.Errorf("packed %s: %q, %v", h.Name, content, err)
		}
	}
	g.copied(t, r, packed.Bytes())
	return err
}

// copied unpacks what was packed into an empty tree and checks that the two trees
// are equal.
func (g *ground) copied(t *testing.T, r *Root, packed []byte) {
	t.Helper()
	if os.Getuid() != 0 {
		return // owners and devices can't be created
	}
	copied, _ := folder(t)
	if err := copied.Unpack(context.Background(), "/", bytes.NewReader(packed), UnpackOptions{}); err != nil {
		t.Fatalf("unpack what was packed: %v", err)
	}
	var again bytes.Buffer
	if err := copied.PackAll(context.Background(), &again); err != nil {
		t.Fatalf("pack the copy: %v", err)
	}
	if a, b := listing(t, packed), listing(t, again.Bytes()); a != b {
		t.Errorf("a tree and its copy differ:\n%s\n%s", a, b)
	}

	// The two trees must not differ, and everything in the tree must differ from an
	// empty one.
	changes, err := Changes(context.Background(), copied, r, func(string) bool { return false })
	if err != nil {
		t.Fatalf("compare: %v", err)
	}
	for _, c := range changes {
		// The copy's times are whole seconds.
		if c.Kind != container.ChangeModify {
			t.Errorf("a tree and its copy differ: %s %s", c.Kind, c.Path)
		}
	}
	empty, _ := folder(t)
	if changes, err = Changes(context.Background(), empty, r, func(string) bool { return false }); err != nil {
		t.Fatalf("compare: %v", err)
	}
	var layer bytes.Buffer
	if err := r.PackChanges(context.Background(), changes, &layer); err != nil {
		t.Fatalf("pack the changes: %v", err)
	}
	var names []string
	for line := range strings.Lines(listing(t, layer.Bytes())) {
		names = append(names, line)
	}
	for line := range strings.Lines(listing(t, packed)) {
		if !slices.Contains(names, line) {
			// Which of several hard links comes first depends on the order.
			if !strings.Contains(line, "links") {
				t.Errorf("a layer lacks what is packed: %s", line)
			}
		}
	}
}

// listing describes an archive as text, sorted by name.
func listing(t *testing.T, archive []byte) string {
	t.Helper()
	var lines []string
	linked := map[string]bool{}
	tr := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeLink {
			linked[h.Name], linked[h.Linkname] = true, true
		}
		lines = append(lines, fmt.Sprintf("%q %c to %q, %o %d:%d, device %d:%d, at %d: %q", h.Name, h.Typeflag, h.Linkname, h.Mode, h.Uid, h.Gid, h.Devmajor, h.Devminor, h.ModTime.Unix(), content))
	}
	for i, line := range lines {
		if name, err := strconv.QuotedPrefix(line); err == nil {
			if name, _ = strconv.Unquote(name); linked[name] {
				lines[i] = fmt.Sprintf("%q links", name)
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// compose makes an archive from a text with one line per entry:
//
//	kind|name|link|mode|content|attribute=value
//
// kind is a type flag of tar(5), or a letter. "@" in names and links stands for
// the directory outside.
func compose(script, outside string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for line := range strings.Lines(script) {
		field := append(strings.SplitN(strings.TrimSuffix(line, "\n"), "|", 6), make([]string, 6)...)
		h := &tar.Header{Format: tar.FormatPAX, Uid: os.Getuid(), Gid: os.Getgid(), ModTime: time.Unix(1e9, 0)}
		if field[0] != "" {
			h.Typeflag = field[0][0]
		}
		if flag, ok := map[byte]byte{
			'f': tar.TypeReg, 'd': tar.TypeDir, 'l': tar.TypeSymlink, 'h': tar.TypeLink, 'c': tar.TypeChar,
			'b': tar.TypeBlock, 'p': tar.TypeFifo,
		}[h.Typeflag]; ok {
			h.Typeflag = flag
		}
		h.Name = strings.ReplaceAll(field[1], "@", outside)
		h.Linkname = strings.ReplaceAll(field[2], "@", outside)
		h.Mode, _ = strconv.ParseInt(field[3], 8, 64)
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(field[4]))
		}
		if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
			h.Devmajor, h.Devminor = int64(len(field[2])), int64(len(field[4]))
		}
		if key, value, ok := strings.Cut(field[5], "="); ok {
			h.PAXRecords = map[string]string{xattrRecord + key: value}
		}
		if w.WriteHeader(h) != nil {
			continue // an entry that can't be encoded is skipped
		}
		_, _ = io.WriteString(w, field[4][:h.Size])
	}
	_ = w.Close()
	return b.Bytes()
}

var hostileScripts = []string{
	"f|../outside/file||644|x",
	"f|/../../outside/new||644|x",
	"f|abs/file||644|x\nf|up/new||644|x\nf|absfile||644|x\nf|gone||644|x",
	"f|in/../up/new||644|x",
	"l|a|@|777\nf|a/file||644|x\nd|a/made||755",
	"l|a|..|777\nl|a/b|outside|777\nf|a/b/file||644|x",
	"h|stolen|@/file|644\nh|stolen2|../outside/file|644\nh|stolen3|up/file|644\nh|stolen4|upfile|644\nf|stolen4||644|x",
	"h|a|real/file|4755\nf|a||4755|x\nh|b|b|644",
	"l|real|@|777\nf|real/file||644|x\nd|real||700",
	"d|up||700\nd|abs/||700\nd|root||700",
	"d|d||0\nf|d/f||7777|x\nd|d/e||1777|",
	"c|null||666|123\nb|disk|12345678|660\np|pipe||600\np|real||600",
	"f|caps||755|x|security.capability=\x01\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
	"f|a||644|x|user.x=y\nd|real||755||trusted.overlay.opaque=y\nl|s|@|777||user.x=y\nf|s||644|x|trusted.overlay.redirect=/x",
	"f|.wh.real||0|\nf|real/.wh..wh..opq||0|\nd|.wh.x||755",
	"f|.||644|x\nd|/||0\nf|..||644|x\nh|x|.|644\nh|y||644\nf|||644|x",
	"f|loop/x||644|x\nd|loop||755\nf|loop/x||644|x",
	"l|a|b|777\nl|b|a|777\nf|a/x||644|x",
	"f|root/etc/x||644|x\nf|root||644|x",
	"d|x/" + strings.Repeat("d/", 200) + "||755",
	"f|" + strings.Repeat("n", 256) + "||644|x",
	"g|x||644\nS|sparse||644|x\n7|c||644|x\nV|volume||644|x\nD|dump||644|x",
}

// FuzzUnpackStaysInTheTree unpacks well-formed archives with hostile entries.
func FuzzUnpackStaysInTheTree(f *testing.F) {
	for i, s := range hostileScripts {
		f.Add(s, []string{"/", "/in", "real/deep", "/up"}[i%4], i%2 == 0, i%3 == 0)
	}
	f.Fuzz(func(t *testing.T, script, into string, keep, own bool) {
		if len(script) > 4<<10 || len(into) > 1<<10 {
			return
		}
		g := newGround(t)
		o := UnpackOptions{KeepKind: keep}
		if own {
			o.Owner = &Owner{os.Getuid(), os.Getgid()}
		}
		_ = g.unpack(t, compose(script, g.outside), strings.ReplaceAll(into, "@", g.outside), o)
	})
}

// repair corrects the checksum of every header of an archive, so that hostile
// headers are accepted. Blocks of content, which a reader skips, are left alone.
func repair(archive []byte) []byte {
	archive = bytes.Clone(archive)
	for at := 0; at+512 <= len(archive); {
		block := archive[at : at+512]
		at += 512
		if bytes.Count(block, []byte{0}) == 512 {
			continue
		}
		copy(block[148:], "        ")
		sum := 0
		for _, c := range block {
			sum += int(c)
		}
		copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
		size, err := strconv.ParseInt(strings.Trim(string(block[124:136]), " \x00"), 8, 64)
		if err == nil && size > 0 && size < int64(len(archive)) {
			at += int(size+511) / 512 * 512
		}
	}
	return archive
}

// FuzzUnpackReadsAnything unpacks bytes that may not be an archive: an error must
// blame the archive or the tree, and nothing outside the tree may change.
func FuzzUnpackReadsAnything(f *testing.F) {
	for _, s := range hostileScripts {
		f.Add(compose(s, "../outside"), true)
	}
	whole := compose("f|a||644|content\nl|b|a|777\nf|"+strings.Repeat("long/", 40)+"||644|x|user.a=b", "")
	for n := 0; n < len(whole); n += 300 {
		f.Add(whole[:n], true)
	}
	for _, head := range []string{"\x1f\x8b\x08", "BZh9", "\xfd7zXZ\x00", "\x28\xb5\x2f\xfd", "\x50\x2a\x4d\x18\xff\xff\xff\xff"} {
		f.Add([]byte(head+"rest of it"), false)
	}
	f.Fuzz(func(t *testing.T, archive []byte, mend bool) {
		if mend {
			archive = repair(archive)
		}
		if bytes.HasPrefix(archive, []byte("\xfd7zXZ")) {
			return // xz runs another program, which this target does not test
		}
		g := newGround(t)
		r, err := OpenFolder(g.tree)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		err = r.Unpack(context.Background(), "/", bytes.NewReader(archive), UnpackOptions{})
		g.untouched(t)
		if errno := unix.Errno(0); err != nil && !errdefs.IsInvalidArgument(err) && !errors.As(err, &errno) {
			t.Errorf("neither the archive nor the tree is at fault: %v", err)
		}
	})
}

// FuzzPathsStayInTheTree uses arbitrary paths of a tree whose links lead out.
func FuzzPathsStayInTheTree(f *testing.F) {
	for _, p := range []string{
		"/", "..", "up/file", "abs/file", "/absfile", "in/file", "/proc/self/root/etc/passwd", "root/etc", "loop", "real/back/file",
		"real/../../outside/file", "up/.", "absfile/", "\x00", "//real//./file", "real/file/", "gone", strings.Repeat("../", 50) + "etc/passwd",
	} {
		f.Add(p)
	}
	g := newGround(f)
	r, err := OpenFolder(g.tree)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { r.Close() })
	f.Fuzz(func(t *testing.T, path string) {
		if file, err := r.Open(path); err == nil {
			at, err := os.Readlink(self(file))
			file.Close()
			if err != nil || !strings.HasPrefix(at, g.tree+"/") {
				t.Errorf("opened %s, %v", at, err)
			}
		}
		st, statErr := r.Stat(path)
		if st.LinkTarget != "" && !filepath.IsAbs(st.LinkTarget) {
			t.Errorf("a link to %q", st.LinkTarget)
		}
		var packed bytes.Buffer
		err := r.Pack(context.Background(), path, func(container.PathStat) io.Writer { return &packed })
		if (err == nil) != (statErr == nil) {
			t.Errorf("stat says %v, pack %v", statErr, err)
		}
		if err != nil {
			return
		}
		for tr := tar.NewReader(&packed); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(h.Name, "..") {
				t.Errorf("packed under the name %q", h.Name)
			}
		}
	})
}
