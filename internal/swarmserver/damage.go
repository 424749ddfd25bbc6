// SPDX-License-Identifier: Apache-2.0

package swarmserver

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/swarmkit/v2/log"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	ours "holdfast/internal/swarm"
)

// A manager whose raft log lacks something must not go on with it: the other managers
// count on what it has acknowledged. It must not begin without a log either, because that
// would be a new cluster, which knows none of the tasks. So the log is set aside, and the
// node waits for an operator, while its tasks run on.

const (
	raftDir  = "raft"
	asideDir = "raft-damaged-" // and the time
)

// damages are parts of what swarmkit and raft say of a log that can't be used. raft
// panics where it finds that something is missing.
var damages = []string{
	"failed to open WAL", "irreparable WAL error", "WAL error cannot be repaired", "failed to unmarshal WAL metadata",
	"Was the raft log corrupted, truncated, or lost?", "state.commit",
}

// damaged reports whether a text, of an error or of a crash, is about a damaged log.
func damaged(text string) bool {
	return slices.ContainsFunc(damages, func(d string) bool { return strings.Contains(text, d) })
}

// damagedBy reports whether an error is about a damaged log, and not about a disk that can't
// be read or written now.
func damagedBy(err error) bool {
	for _, passing := range []error{unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.EROFS, unix.EMFILE, unix.ENFILE, unix.EACCES, unix.EPERM, unix.ENOMEM} {
		if errors.Is(err, passing) {
			return false
		}
	}
	return err != nil && damaged(err.Error())
}

// damageError says what is damaged, and which command heals it.
type damageError struct{ path, node string }

func (e *damageError) Error() string {
	return fmt.Sprintf("The raft log of this manager is damaged, and was set aside as %s. Its tasks run on. "+
		"If the swarm has other managers, run \"docker node demote %s\" and \"docker node rm --force %s\" on one of them, and then \"docker swarm leave --force\" and \"docker swarm join\" here. "+
		"If this was the only manager, put a backup of %s in place, or rename %s to raft again to go on with what is left of it, and run \"docker swarm init --force-new-cluster\": tasks that the log does not know are stopped.",
		e.path, e.node, e.node, filepath.Dir(e.path), filepath.Base(e.path))
}

// Unwrap is the kind of the error.
func (*damageError) Unwrap() error { return errdefs.ErrUnavailable }

// aside returns a *damageError if the log was set aside and none was put in its place.
func aside(dir string) error {
	all, err := filepath.Glob(filepath.Join(dir, asideDir+"*"))
	if err != nil || len(all) == 0 {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, raftDir)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return &damageError{all[len(all)-1], nodeOf(dir)}
}

// usable returns an error if the log can't be used. With forced the operator wants to go on
// with what is left of it.
func usable(dir string, forced bool) error {
	if err := aside(dir); err != nil {
		return err
	}
	if forced {
		err := os.Remove(filepath.Join(dir, progressFile))
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	}
	if cutShort(dir) {
		log.L.Errorf("the raft log lacks entries that were committed")
		return setAside(dir)
	}
	return nil
}

// setAside sets the log aside.
func setAside(dir string) error {
	path := filepath.Join(dir, asideDir+time.Now().UTC().Format("20060102T150405Z"))
	if err := os.Rename(filepath.Join(dir, raftDir), path); err != nil {
		return fmt.Errorf("set the damaged raft log aside: %w", err)
	}
	return aside(dir)
}

// nodeOf is the ID of the node, which its certificate names.
func nodeOf(dir string) string {
	const unknown = "NODE"
	text, err := os.ReadFile(filepath.Join(dir, "certificates", "swarm-node.crt"))
	if err != nil {
		return unknown
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return unknown
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil || cert.Subject.CommonName == "" {
		return unknown
	}
	return cert.Subject.CommonName
}

// crash records what this process dies of, for the next one. swarmkit and raft say it in
// their log before they panic.
type crash struct{ path string }

func (crash) Levels() []logrus.Level { return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel} }

func (c crash) Fire(e *logrus.Entry) error { return os.WriteFile(c.path, []byte(e.Message), 0o600) }

// learnFromCrash sets the log aside if the earlier process has died of it.
func (s *server) learnFromCrash() error {
	path := filepath.Join(ours.Dir(s.o.ExecRoot), "crash.txt")
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if damaged(string(text)) {
		if err := setAside(ours.StateDir(s.o.DataRoot)); err != nil {
			log.L.Errorf("%v", err)
		}
	}
	logrus.AddHook(crash{path})
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
