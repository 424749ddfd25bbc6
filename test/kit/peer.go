// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// PeerOptions are the options of StartPeer.
type PeerOptions struct {
	// Config are keys of dockerd's daemon.json.
	Config map[string]any
	// Flags come after the kit's own.
	Flags []string
	// Programs is the directory of dockerd, containerd,
	// containerd-shim-runc-v2, docker-proxy and runc. Empty means the one into
	// which make peer installs them.
	Programs string
	// Netns is the network namespace in which both run. A zero Netns makes one
	// without a route to the outside.
	Netns Netns
}

// Peer is a private dockerd with its own containerd, as a reference. It has the
// methods of Daemon, and is cleaned up in the same way but without a check for
// leaks.
//
// Both run in a network namespace of their own, so that their bridges,
// addresses and packet filters do not touch the host's.
type Peer struct {
	*Daemon
	Netns Netns

	programs string
}

// PeerProgram returns the path of a program that make peer installs, such as
// runc.
func PeerProgram(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(peerPrograms(t), name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run make peer", err)
	}
	return path
}

func peerPrograms(t testing.TB) string {
	t.Helper()
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(home, ".cache/holdfast/peer")
}

// StartPeer starts a dockerd and waits until it reports that it is ready.
func StartPeer(t testing.TB, o PeerOptions) *Peer {
	t.Helper()
	if o.Programs == "" {
		PeerProgram(t, "dockerd")
		o.Programs = peerPrograms(t)
	}
	if o.Netns == (Netns{}) {
		o.Netns = NewNetns(t)
	}
	p := &Peer{programs: o.Programs, Netns: o.Netns}
	p.Daemon = New(t, Options{Binary: filepath.Join(o.Programs, "dockerd"), Config: o.Config, Flags: o.Flags, Disk: true})
	p.Socket = p.Root + "/docker.sock"
	p.Host = "unix://" + p.Socket
	p.peer = p
	t.Cleanup(p.forgetShims) // must run before the directories that name the sockets are removed
	p.startContainerd()
	p.Start()
	return p
}

// BundleConfig returns the config.json that the runtime has used for a running
// container.
func (p *Peer) BundleConfig(id string) *specs.Spec {
	p.t.Helper()
	return readConfig(p.t, filepath.Join(p.bundles(), id, "config.json"))
}

// BundleConfig returns the config.json that the runtime has used for a running
// container.
func (d *Daemon) BundleConfig(id string) *specs.Spec {
	d.t.Helper()
	return readConfig(d.t, filepath.Join(d.ExecRoot, "shim", id, "bundle/config.json"))
}

func readConfig(t testing.TB, path string) *specs.Spec {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var s specs.Spec
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return &s
}

// bundles returns the directory of the bundles of dockerd's containers.
func (p *Peer) bundles() string {
	return p.Root + "/containerd/run/io.containerd.runtime.v2.task/moby"
}

func (p *Peer) containerdSocket() string { return p.Root + "/containerd.sock" }

// command returns dockerd's command.
func (p *Peer) command() *exec.Cmd {
	args := []string{
		"--config-file", p.ConfigFile(), "--data-root", p.DataRoot, "--exec-root", p.ExecRoot, "--pidfile", p.Root + "/docker.pid",
		"--host", p.Host, "--containerd", p.containerdSocket(),
		"--userland-proxy-path", filepath.Join(p.programs, "docker-proxy"),
	}
	for _, f := range [][2]string{
		{"bip", p.Address.String()}, {"cgroup-parent", p.Cgroup}, {"group", ""}, {"init-path", Binary(p.t, "holdfast-init")},
	} {
		if _, instead := p.conf[f[0]]; !instead {
			args = append(args, "--"+f[0], f[1])
		}
	}
	cmd := exec.Command(p.opts.Binary, append(args, p.opts.Flags...)...)
	cmd.Env = p.environment()
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+p.Root+"/notify")
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	return cmd
}

// environment is the test's environment with the peer's programs first in PATH.
func (p *Peer) environment() []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "PATH=") })
	return append(env, "PATH="+p.programs+":"+os.Getenv("PATH")+":/usr/sbin:/sbin")
}

// startContainerd starts containerd without waiting, because dockerd waits for
// it. It is killed together with all other processes that have the peer's
// directory in their command line.
func (p *Peer) startContainerd() {
	p.t.Helper()
	dir := p.Root + "/containerd"
	config := fmt.Sprintf(`version = 3
root = %[1]q
state = %[2]q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri"]

[grpc]
address = %[3]q

[ttrpc]
address = %[4]q

[plugins."io.containerd.internal.v1.opt"]
path = %[5]q
`, dir+"/data", dir+"/run", p.containerdSocket(), p.containerdSocket()+".ttrpc", dir+"/opt")
	if err := os.Mkdir(dir, 0o711); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/config.toml", []byte(config), 0o600); err != nil {
		p.t.Fatal(err)
	}
	log, err := os.Create(dir + "/log")
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(p.programs, "containerd"), "--config", dir+"/config.toml")
	cmd.Env = p.environment()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := p.Netns.Run(cmd.Start); err != nil {
		p.t.Fatal(err)
	}
	go cmd.Wait()
}

// forgetShims removes the sockets of shims. They lie in a directory that all
// containerds share, and a killed shim leaves its own.
func (p *Peer) forgetShims() {
	boots, _ := filepath.Glob(p.bundles() + "/*/bootstrap.json")
	for _, path := range boots {
		b, err := os.ReadFile(path)
		var boot struct{ Address string }
		if err != nil || json.Unmarshal(b, &boot) != nil {
			continue
		}
		if socket, ok := strings.CutPrefix(boot.Address, "unix://"); ok {
			p.t.Cleanup(func() { os.Remove(socket) })
		}
	}
}
