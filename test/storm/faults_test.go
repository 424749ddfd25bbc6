// SPDX-License-Identifier: Apache-2.0

package storm

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/shim/proto"
	"holdfast/test/kit"
	"holdfast/test/storm/model"
)

// grace is how long after a fault a request may fail because of it: the time in
// which a killed shim is replaced on a busy machine.
const grace = 8 * time.Second

// gremlin does the faults, one after the other, and starts the daemon again
// whenever it has died, until the clients are done. It closes over after the last
// fault.
func (s *storm) gremlin(done <-chan struct{}, over chan<- struct{}) {
	end := sync.OnceFunc(func() { close(over) })
	defer end()
	for _, f := range s.plan.Faults {
		due := time.After(time.Duration(f.After) * time.Millisecond)
		for waiting := true; waiting; {
			select {
			case <-done:
				return
			case <-s.d.Exited():
				s.revive(model.Failpoint, "")
			case <-due:
				waiting = false
			}
		}
		s.note("FAULT %s", f)
		done := s.inflict(f)
		s.note("FAULT %s is over, done %v", f.Kind, done)
		if done {
			s.mu.Lock()
			s.tally.faults[f.Kind]++
			s.mu.Unlock()
		}
		if s.failed() {
			return
		}
	}
	end()
	for {
		select {
		case <-done:
			return
		case <-s.d.Exited():
			s.revive(model.Failpoint, "")
		}
	}
}

// revive starts the daemon, which has died. failpoint is where it dies next.
func (s *storm) revive(kind model.Kind, failpoint string) {
	w := s.open(kind, everywhere)
	code := s.d.WaitExit()
	s.note("the daemon has ended (%d), it was to die at %q; the next is to die at %q", code, s.armedAt(), failpoint)
	if s.armedAt() == "" && kind == model.Failpoint && failpoint == "" && !s.touched(everywhere, time.Now(), model.NoMemory) {
		s.violate("death", "the daemon ended by itself, with %d", code)
	}
	s.sawDeath()
	for _, l := range s.slots {
		l.mu.Lock()
		l.model.SawDaemonBegin()
		l.mu.Unlock()
	}
	s.arm(failpoint)
	err := s.start()
	for range 3 {
		if err == nil || failpoint == "" {
			break
		}
		s.arm("")
		failpoint = ""
		s.sawDeath()
		err = s.start()
	}
	if err != nil {
		s.violate("start", "the daemon does not start: %v", err)
	}
	s.note("the daemon is up: %d", s.d.Pid())
	s.shut(w, 2*time.Second)
}

// start starts the daemon, and judges how long that takes.
func (s *storm) start() error {
	began := time.Now()
	err := s.d.TryStart()
	if took := time.Since(began); err == nil && took > 20*time.Second {
		s.violate("start", "the daemon was ready after %s", took)
	}
	return err
}

func (s *storm) armedAt() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.armed
}

func (s *storm) arm(failpoint string) {
	s.mu.Lock()
	s.armed = failpoint
	s.mu.Unlock()
	if failpoint == "" {
		s.d.SetEnv()
	} else {
		s.d.SetEnv("HOLDFAST_FAILPOINT=" + failpoint)
	}
}

// sawDeath records that a daemon died: containers whose shim was just killed had
// neither.
func (s *storm) sawDeath() {
	s.mu.Lock()
	var without []place
	for at, when := range s.shimKills {
		if time.Since(when) < grace {
			without = append(without, at)
		}
	}
	s.mu.Unlock()
	for _, at := range without {
		s.orphan(s.slots[at])
	}
}

func (s *storm) orphan(l *slot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.model.SawOrphaning()
}

// victim is a running container as its shim has recorded it.
type victim struct {
	id    string
	state proto.State
	slot  *slot // nil for one that no slot knows
}

func (s *storm) victims() (out []victim) {
	paths, _ := filepath.Glob(s.d.ExecRoot + "/shim/*/" + proto.StateFile) // it fails only for bad patterns
	slices.Sort(paths)
	for _, path := range paths {
		v := victim{id: filepath.Base(filepath.Dir(path))}
		b, err := os.ReadFile(path)
		if err != nil || json.Unmarshal(b, &v.state) != nil || v.state.ShimPid <= 0 {
			continue
		}
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", v.state.ShimPid))
		if !strings.Contains(string(cmdline), "holdfast-shim") {
			continue
		}
		s.mu.Lock()
		v.slot = s.byID[v.id]
		s.mu.Unlock()
		out = append(out, v)
	}
	return out
}

func (v victim) at() place {
	if v.slot == nil {
		return everywhere
	}
	return v.slot.at
}

func (s *storm) killShim(v victim) {
	s.mu.Lock()
	s.shimKills[v.at()] = time.Now()
	s.mu.Unlock()
	if s.armedAt() != "" && v.slot != nil {
		s.orphan(v.slot) // the daemon may die at any moment
	}
	unix.Kill(v.state.ShimPid, unix.SIGKILL)
}

var failpointNames = sync.OnceValue(func() []string {
	names, err := kit.Failpoints()
	if err != nil {
		panic(err)
	}
	return names
})

// inflict does one fault. It reports whether there was anything to inflict it on.
func (s *storm) inflict(f model.Fault) bool {
	victims := s.victims()
	var v victim
	if len(victims) > 0 {
		v = victims[f.N%len(victims)]
	}
	switch f.Kind {
	case model.KillDaemon, model.TermDaemon, model.Failpoint, model.KillBoth, model.FreezeDaemon, model.Reload, model.Takeover, model.Upgrade, model.KillEvents,
		model.Replace, model.NoFiles, model.NoMemory, model.KillOther:
		w := s.open(f.Kind, everywhere)
		done := s.inflictDaemon(f)
		s.shut(w, after[f.Kind])
		return done
	case model.KillRuntime, model.KillInit:
		return s.killRuntime(f)
	case model.FlushRules, model.BridgeDown, model.LinkGone, model.MountGone, model.RunFileGone:
		return s.damage(f, v)
	case model.FillDisk, model.FillInodes:
		return s.fill(f)
	}
	if v.id == "" {
		return false
	}
	w := s.open(f.Kind, v.at())
	defer s.shut(w, after[f.Kind])
	switch f.Kind {
	case model.KillShim:
		s.killShim(v)
	case model.KillContainer:
		if v.slot == nil || v.state.Pid <= 0 {
			return false
		}
		v.slot.mu.Lock()
		v.slot.model.SawKill()
		v.slot.mu.Unlock()
		return s.killFirst(v)
	case model.FreezeShim:
		unix.Kill(v.state.ShimPid, unix.SIGSTOP)
		last(f)
		unix.Kill(v.state.ShimPid, unix.SIGCONT)
	case model.NoFilesShim:
		return s.noFiles(v.state.ShimPid, f)
	}
	return true
}

// after is how long after a fault requests may still fail because of it.
var after = map[model.Kind]time.Duration{
	model.KillDaemon: 2 * time.Second, model.TermDaemon: 2 * time.Second, model.Failpoint: 2 * time.Second, model.FreezeDaemon: 2 * time.Second,
	model.Takeover: 2 * time.Second, model.FreezeShim: 2 * time.Second, model.KillBoth: grace, model.KillShim: grace, model.KillContainer: grace,
	model.KillEvents: time.Second, model.Reload: time.Second, model.Upgrade: time.Second, model.Replace: 2 * time.Second,
	model.NoFiles: 2 * time.Second, model.NoFilesShim: grace, model.NoMemory: grace,
}

// inflictDaemon does a fault of the daemon, or of all processes.
func (s *storm) inflictDaemon(f model.Fault) (done bool) {
	switch f.Kind {
	case model.Replace:
		return s.replace()
	case model.NoFiles:
		return s.noFiles(s.d.Pid(), f)
	case model.NoMemory:
		return s.noMemory(f)
	case model.KillOther:
		s.other.kill(s)
	case model.KillDaemon:
		unix.Kill(s.d.Pid(), unix.SIGKILL)
		last(f)
		s.revive(f.Kind, "")
	case model.TermDaemon:
		unix.Kill(s.d.Pid(), unix.SIGTERM)
		s.revive(f.Kind, "")
	case model.Failpoint:
		names := failpointNames()
		name := names[f.N%len(names)]
		if strings.HasPrefix(name, "takeover.") {
			s.takeover(name)
			break
		}
		unix.Kill(s.d.Pid(), unix.SIGKILL)
		s.revive(f.Kind, name)
		if strings.HasPrefix(name, "handover.") && s.d.Running() {
			s.takeover("")
		}
	case model.KillBoth:
		for _, l := range s.slots {
			s.orphan(l)
		}
		unix.Kill(s.d.Pid(), unix.SIGKILL)
		for _, v := range s.victims() {
			s.killShim(v)
		}
		last(f)
		for _, l := range s.slots {
			s.orphan(l)
		}
		s.revive(f.Kind, "")
	case model.KillEvents:
		for _, pid := range kit.EventServers(s.t, s.d) {
			unix.Kill(pid, unix.SIGKILL)
		}
	case model.FreezeDaemon:
		pid := s.d.Pid()
		unix.Kill(pid, unix.SIGSTOP)
		last(f)
		unix.Kill(pid, unix.SIGCONT)
	case model.Reload:
		s.d.WriteConfig(map[string]any{"live-restore": true, "debug": f.N%2 == 0, "shutdown-timeout": 10 + f.N%5})
		unix.Kill(s.d.Pid(), unix.SIGHUP)
	case model.Takeover:
		s.takeover("")
	case model.Upgrade:
		r := s.d.TryHoldfast("daemon", "upgrade", "--shims")
		s.note("upgrade of shims: %d %s", r.Code, shorten(r.Stdout+r.Stderr))
	}
	return true
}

// last waits as long as a fault lasts.
func last(f model.Fault) { <-time.After(time.Duration(f.Time) * time.Millisecond) }

// takeover lets another daemon take over, which dies at a failpoint where one is
// given.
func (s *storm) takeover(failpoint string) {
	if !s.d.Running() {
		s.revive(model.Failpoint, "")
	}
	for _, l := range s.slots {
		l.mu.Lock()
		l.model.SawDaemonBegin() // where both die, the next is an ordinary start
		l.mu.Unlock()
	}
	var env []string
	if failpoint != "" {
		env = append(env, "HOLDFAST_FAILPOINT="+failpoint)
	}
	was := s.armedAt()
	s.d.SetEnv() // the new daemon does not die where the old one was to
	err := s.d.TryTakeover(env...)
	s.note("takeover %s: %v", failpoint, err)
	switch {
	case err == nil:
		s.arm(failpoint) // the new daemon has it, and may yet die
		s.d.SetEnv()
	case failpoint == "" && was == "" && !strings.Contains(err.Error(), "busy"):
		s.violate("takeover", "%v", err)
	case failpoint != "":
		s.mu.Lock()
		s.armed = failpoint // the death of the new one may be the end of the old
		s.mu.Unlock()
	}
}

// killFirst kills the first process of a container by a pidfd.
func (s *storm) killFirst(v victim) bool {
	fd, err := unix.PidfdOpen(v.state.Pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", v.state.Pid))
	return strings.TrimSpace(string(comm)) == "player" && unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil
}

// killRuntime waits for a call of the runtime and kills it, or its first process
// in the container, in the middle.
func (s *storm) killRuntime(f model.Fault) bool {
	late := time.After(500 * time.Millisecond)
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for {
		if pid, at, ok := s.runtime(f.Kind == model.KillInit); ok {
			w := s.open(f.Kind, at)
			for _, l := range s.slots {
				if at == everywhere || l.at == at {
					l.mu.Lock()
					l.model.SawDamage()
					if f.Kind == model.KillInit {
						// It may be about to execute the program: the start has succeeded
						// then, and the container is killed.
						l.model.SawKill()
					}
					l.mu.Unlock()
				}
			}
			unix.Kill(pid, unix.SIGKILL)
			s.note("%s: killed %d, of %s", f.Kind, pid, at)
			s.shut(w, grace)
			return true
		}
		select {
		case <-again.C:
		case <-late:
			s.note("%s: there was none", f.Kind)
			return false
		}
	}
}

// runtime finds a process of the runtime.
func (s *storm) runtime(init bool) (pid int, at place, ok bool) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		comm, _ := os.ReadFile("/proc/" + e.Name() + "/comm")
		name := strings.TrimSpace(string(comm))
		if init != strings.HasPrefix(name, "runc:") || !init && name != "runc" {
			continue
		}
		of := n
		if init {
			status, _ := os.ReadFile("/proc/" + e.Name() + "/status")
			_, rest, _ := strings.Cut(string(status), "\nPPid:")
			fmt.Sscan(rest, &of)
		}
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", of))
		if !strings.Contains(string(cmdline), s.d.Root+"/") {
			continue
		}
		at := everywhere
		s.mu.Lock()
		for id, l := range s.byID {
			if strings.Contains(string(cmdline), id) {
				at = l.at
			}
		}
		s.mu.Unlock()
		return n, at, true
	}
	return 0, place{}, false
}

// damage takes something away that the containers use.
func (s *storm) damage(f model.Fault, v victim) (done bool) {
	w := s.open(f.Kind, everywhere)
	defer s.shut(w, grace)
	err := errors.New("there is none")
	switch f.Kind {
	case model.FlushRules:
		verb := []string{"flush", "delete"}[f.N%2]
		err = exec.Command("nft", verb+" table inet "+s.d.Table).Run()
	case model.BridgeDown:
		err = exec.Command("ip", "link", "set", s.d.Bridge, "down").Run()
	case model.LinkGone:
		ports, _ := filepath.Glob("/sys/class/net/" + s.d.Bridge + "/brif/*")
		if len(ports) > 0 {
			s.hurt()
			err = exec.Command("ip", "link", "delete", filepath.Base(ports[f.N%len(ports)])).Run()
		}
	case model.MountGone:
		if v.id != "" {
			s.hurt()
			// Until the next start nothing mounts it again, see docs/reliability.md.
			s.open(f.Kind, v.at())
			mounts, _ := os.ReadFile("/proc/self/mountinfo")
			for line := range strings.Lines(string(mounts)) {
				if m := strings.Fields(line)[4]; strings.Contains(m, v.id) && strings.HasPrefix(m, s.d.Root) {
					s.note("%s: %s", f.Kind, m)
					err = unix.Unmount(m, unix.MNT_DETACH)
					break
				}
			}
		}
	case model.RunFileGone:
		err = os.RemoveAll(s.d.ExecRoot + "/" + []string{"roots.json", "events.log"}[f.N%2])
	}
	if err != nil {
		s.note("%s: %v", f.Kind, err)
	}
	return err == nil
}

// hurt records that a container's network or root was damaged.
func (s *storm) hurt() {
	for _, l := range s.slots {
		l.mu.Lock()
		l.damaged = true
		l.model.SawDamage()
		l.mu.Unlock()
	}
}

// fill makes the file system of the data root full for a while.
func (s *storm) fill(f model.Fault) bool {
	w := s.open(f.Kind, everywhere)
	defer s.shut(w, grace)
	s.mu.Lock()
	s.full = true
	s.mu.Unlock()
	saw := func() {
		for _, l := range s.slots {
			l.mu.Lock()
			l.model.SawFullDisk()
			l.mu.Unlock()
		}
	}
	saw()
	defer saw() // containers may have been made meanwhile
	dir := s.d.DataRoot + "/filler"
	if err := os.Mkdir(dir, 0o700); err != nil {
		s.note("fill: %v", err)
		return false
	}
	defer os.RemoveAll(dir)
	if f.Kind == model.FillInodes {
		for i := range 1 << 20 {
			if os.WriteFile(dir+"/"+strconv.Itoa(i), nil, 0o600) != nil {
				break
			}
		}
	} else {
		b := make([]byte, 1<<16)
		file, err := os.Create(dir + "/file")
		if err != nil {
			return false
		}
		for len(b) > 0 {
			if _, err := file.Write(b); err != nil {
				b = b[:len(b)/2]
			}
		}
		file.Close()
	}
	last(f)
	return true
}
