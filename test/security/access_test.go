// SPDX-License-Identifier: Apache-2.0

package security

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/test/kit"
)

func init() { roles["reach"] = reach }

// IDs of users of the host in these tests. No accounts with these IDs need to
// exist.
const (
	stranger = 65534 // has no rights
	member   = 64998 // the group of the API's socket
	sharedID = 64999 // a container's user has this ID as well
)

// reach reads paths, one per line, and prints those that its user can access,
// and how: read, execute, write or connect.
func reach() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		path := lines.Text()
		st, err := os.Lstat(path)
		if err != nil {
			continue
		}
		how := []string{"stat"}
		if unix.Access(path, unix.X_OK) == nil {
			how = append(how, "enter or run")
		}
		if unix.Access(path, unix.W_OK) == nil {
			how = append(how, "write")
		}
		if st.Mode().Type() != fs.ModeSocket && st.Mode().Type() != fs.ModeNamedPipe {
			if f, err := os.Open(path); err == nil {
				f.Close()
				how = append(how, "read")
			}
		} else if unix.Access(path, unix.R_OK) == nil {
			how = append(how, "read")
		}
		fmt.Printf("%s\t%s\n", path, strings.Join(how, ", "))
	}
}

// reached runs reach as a user and returns the paths that this user can access.
func reached(t *testing.T, uid, gid uint32, paths []string) map[string]string {
	t.Helper()
	self, err := os.Open(self(t)) // the user may not be able to enter the directory of this binary
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	cmd := exec.Command("/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{self}
	cmd.Env = []string{"SECURITY_ROLE=reach"}
	cmd.Dir = "/"
	cmd.Stdin = strings.NewReader(strings.Join(paths, "\n"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("look as user %d: %v: %s", uid, err, errs.String())
	}
	got := map[string]string{}
	for line := range strings.Lines(string(out)) {
		path, how, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		got[path] = how
	}
	return got
}

// everything lists all paths below the daemon's roots, as root sees them.
func everything(t *testing.T, d *kit.Daemon) []string {
	t.Helper()
	var paths []string
	for _, root := range []string{d.DataRoot, d.ExecRoot} {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // files are created and removed meanwhile
			}
			if path != root {
				paths = append(paths, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return paths
}

// inhabited starts containers that create the files which an attacker would
// want to access.
func inhabited(t *testing.T, d *kit.Daemon) {
	t.Helper()
	plant := "cp /bin/busybox /setuid && chmod 4755 /setuid && cp /bin/busybox /v/setuid && chmod 4755 /v/setuid && chmod 777 / /v && touch /ready && exec sleep 1000"
	d.Docker("run", "-d", "--name", "root", "-v", "vol:/v", image, "sh", "-c", plant)
	d.Docker("run", "-d", "-i", "--name", "user", "-u", strconv.Itoa(sharedID), image, "sh", "-c", "echo out; echo err >&2; exec sleep 1000")
	d.Docker("run", "-d", "--name", "local", "--log-driver", "local", "--network", "none", image, "sh", "-c", "echo out; exec sleep 1000")
	d.Docker("exec", "root", "sh", "-c", "until [ -e /ready ]; do usleep 10000; done")
}

// planted returns the setuid programs and FIFOs among the paths that containers
// have created.
func planted(paths []string) (setuid, fifos []string) {
	for _, p := range paths {
		st, err := os.Lstat(p)
		switch {
		case err != nil:
		case filepath.Base(p) == "setuid" && st.Mode()&fs.ModeSetuid != 0:
			setuid = append(setuid, p)
		case st.Mode().Type() == fs.ModeNamedPipe:
			fifos = append(fifos, p)
		}
	}
	return setuid, fifos
}

// CVE-2021-41091: every user of the host could enter the directories above
// containers' files, and run a setuid program that a container had created.
// Here only root can enter the data root and the exec root, whatever the modes
// below them are.
func TestCVE_2021_41091_UserOfTheHostReachesNothingBelowTheRoots(t *testing.T) {
	d := live(t)
	inhabited(t, d)
	paths := everything(t, d)
	setuid, fifos := planted(paths)
	if len(setuid) < 3 || len(fifos) < 3 { // in the upper layer, the mounted root, and the volume
		t.Fatalf("the containers have not created all setuid programs and FIFOs: %v, %v", setuid, fifos)
	}
	for _, uid := range []uint32{stranger, sharedID} {
		for path, how := range reached(t, uid, uid, paths) {
			t.Errorf("user %d gets at %s: %s", uid, path, how)
		}
	}
}

// The group of the API's socket can access what the command line needs while no
// daemon lives; its members have root's rights through the API anyway. All
// other files are closed to the group by their own modes.
func TestGroupOfTheSocketReachesSocketsAndRecordsAlone(t *testing.T) {
	d := kit.New(t, kit.Options{LiveRestore: true, Flags: []string{"--group", strconv.Itoa(member)}})
	d.Start()
	d.Load(image, kit.Busybox(t, nil))
	inhabited(t, d)
	paths := everything(t, d)
	got := reached(t, stranger, member, paths)
	if how := got[d.Socket]; !strings.Contains(how, "write") {
		t.Errorf("the group does not reach the API's socket: %q", how)
	}
	_, fifos := planted(paths)
	for _, path := range paths {
		how, ok := got[path]
		if !ok {
			continue
		}
		below := func(dir string) bool { return strings.HasPrefix(path, dir+"/") }
		switch {
		case below(d.DataRoot + "/volumes"), below(d.DataRoot + "/images"):
			t.Errorf("the group can access %s: %s", path, how)
		case slices.Contains(fifos, path) && how != "stat":
			t.Errorf("the group can access the pipe %s: %s", path, how)
		}
	}
	// All other users have no access, including the user whose ID a container
	// shares.
	for path, how := range reached(t, sharedID, sharedID, paths) {
		t.Errorf("user %d gets at %s: %s", sharedID, path, how)
	}
}

// In roots that an earlier release made, every directory can be entered.
func TestRootsOfAnEarlierReleaseAreClosedAtTheStart(t *testing.T) {
	d := live(t)
	inhabited(t, d)
	d.Kill9()
	loosen(t, d)
	if len(reached(t, stranger, stranger, everything(t, d))) == 0 {
		t.Fatal("the roots could not be opened for the test")
	}
	d.Start()
	for path, how := range reached(t, sharedID, sharedID, everything(t, d)) {
		t.Errorf("user %d gets at %s: %s", sharedID, path, how)
	}
	if out := d.Docker("exec", "user", "id", "-u"); strings.TrimSpace(out) != strconv.Itoa(sharedID) {
		t.Errorf("the container has changed: %q", out)
	}
}

// loosen gives the roots the modes of the first releases.
func loosen(t *testing.T, d *kit.Daemon) {
	t.Helper()
	open := []string{d.DataRoot, d.ExecRoot}
	for _, pattern := range []string{"data/images", "data/volumes", "data/volumes/*", "data/containers", "data/containers/*", "run/shim", "run/shim/*", "run/shim/*/bundle", "run/names"} {
		found, err := filepath.Glob(filepath.Join(d.Root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, found...)
	}
	for _, path := range open {
		if err := os.Chmod(path, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	for _, lock := range []string{d.DataRoot + "/holdfastd.lock", d.ExecRoot + "/holdfastd.lock"} {
		if err := os.Chmod(lock, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// A user who can open the lock files could prevent every daemon from starting,
// because flock(2) does not require write access.
func TestUserOfTheHostCannotHoldTheDaemonsLock(t *testing.T) {
	d := live(t)
	closed := func() {
		t.Helper()
		for _, root := range []string{d.DataRoot, d.ExecRoot} {
			st, err := os.Stat(root + "/holdfastd.lock")
			if err != nil {
				t.Fatal(err)
			}
			if st.Mode().Perm() != 0o600 {
				t.Errorf("the lock in %s has mode %v", root, st.Mode().Perm())
			}
		}
	}
	closed()
	d.Kill9()
	loosen(t, d)
	d.Start()
	closed()
}

// An administrator may open the API's socket to all users. Then all users can
// enter the folder that contains it, and no other.
func TestSocketOpenToEverybodyOpensItsFolderAlone(t *testing.T) {
	d := live(t)
	inhabited(t, d)
	if err := os.Chmod(d.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	d.Takeover() // the socket stays the same
	got := reached(t, stranger, stranger, everything(t, d))
	if !strings.Contains(got[d.Socket], "write") {
		t.Errorf("the socket can't be accessed: %q", got[d.Socket])
	}
	for path, how := range got {
		if filepath.Dir(path) != d.ExecRoot {
			t.Errorf("a stranger gets at %s: %s", path, how)
		}
		if path != d.Socket && strings.Contains(how, "write") {
			t.Errorf("a stranger may write to %s: %s", path, how)
		}
	}
}
