// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	apinet "github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"holdfast/internal/network"
)

// debian is the directory where Debian packages are unpacked without being
// installed.
const debian = "../../.cache/debian"

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// command returns a command of a program that is installed or unpacked there.
func (h *host) command(name string, args ...string) *exec.Cmd {
	h.t.Helper()
	path := "PATH=" + os.Getenv("PATH")
	folders := []string{"/usr/sbin", "/sbin"}
	for _, dir := range []string{"usr/sbin", "usr/bin"} {
		abs, err := filepath.Abs(filepath.Join(debian, dir))
		h.ok(err)
		folders = append(folders, abs)
	}
	cmd := exec.Command(name, args...)
	for _, dir := range folders {
		path += ":" + dir
		if cmd.Err != nil && exists(filepath.Join(dir, name)) {
			cmd.Path, cmd.Err = filepath.Join(dir, name), nil
		}
	}
	cmd.Env = append(os.Environ(), path)
	return cmd
}

// do runs another program's command, with an input if it is not empty.
func (h *host) do(input, name string, args ...string) string {
	h.t.Helper()
	cmd := h.command(name, args...)
	cmd.Stdin = strings.NewReader(input)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		h.t.Fatalf("%s %q: %v: %s%s", name, args, err, &out, &said)
	}
	return out.String()
}

// iptables runs iptables and ip6tables of a kind, nft or legacy.
func (h *host) iptables(kind string, args ...string) {
	h.t.Helper()
	for _, family := range []string{"iptables-", "ip6tables-"} {
		h.do("", family+kind, args...)
	}
}

// own mounts a copy of a host directory over it, for programs that write there.
func (h *host) own(dir string) {
	h.t.Helper()
	to := h.t.TempDir()
	h.ok(os.CopyFS(to, os.DirFS(dir)))
	h.do("", "cp", "-a", dir+"/.", to)
	h.ok(unix.Mount(to, dir, "", unix.MS_BIND, ""))
	h.t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			h.t.Error(err)
		}
	})
}

// foreign is another program that filters forwarded packets.
type foreign struct {
	// start starts the program. It drops forwarded packets.
	start func(h *host)
	// list returns its rules, with ours among them.
	list func(h *host) string
	// undone are actions that remove our rules or move them behind others.
	undone map[string]func(h *host)
	// stop stops the program.
	stop func(h *host)
}

func (h *host) saved(kind string) string {
	var out strings.Builder
	for _, family := range []string{"iptables-", "ip6tables-"} {
		for _, line := range strings.Split(h.do("", family+kind+"-save", "-t", "filter"), "\n") {
			if !strings.HasPrefix(line, "#") {
				if i := strings.Index(line, " ["); i > 0 {
					line = line[:i] // without counters
				}
				out.WriteString(line + "\n")
			}
		}
	}
	return out.String()
}

func xtables(kind string) foreign {
	each := func(args ...string) func(h *host) { return func(h *host) { h.iptables(kind, args...) } }
	return foreign{
		start: func(h *host) {
			h.iptables(kind, "-N", "MINE")
			h.iptables(kind, "-A", "MINE", "-p", "sctp", "-j", "RETURN")
			h.iptables(kind, "-A", "FORWARD", "-m", "comment", "--comment", "mine", "-j", "MINE")
			h.iptables(kind, "-A", "FORWARD", "-i", "else0", "-j", "DROP")
			h.iptables(kind, "-N", "DOCKER")
			h.iptables(kind, "-A", "FORWARD", "-o", "docker9", "-j", "DOCKER")
			h.iptables(kind, "-P", "FORWARD", "DROP")
		},
		list: func(h *host) string { return h.saved(kind) },
		undone: map[string]func(h *host){
			"flush": each("-F", "FORWARD"),
			"flush everything": func(h *host) { // as a program does that restores saved rules
				for _, family := range []string{"iptables-", "ip6tables-"} {
					h.do("*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\nCOMMIT\n", family+kind+"-restore")
				}
			},
			"our rules": each("-F", table),
		},
		stop: func(h *host) {
			h.iptables(kind, "-F", "FORWARD")
			h.iptables(kind, "-P", "FORWARD", "ACCEPT")
		},
	}
}

var foreigns = map[string]foreign{
	"iptables-nft":    xtables("nft"),
	"iptables-legacy": xtables("legacy"),
	"a last rule that rejects": {
		start: func(h *host) {
			h.iptables("nft", "-A", "FORWARD", "-i", "else0", "-j", "ACCEPT")
			h.iptables("nft", "-A", "FORWARD", "-m", "limit", "-j", "LOG")
			h.iptables("nft", "-A", "FORWARD", "-j", "REJECT")
		},
		list:   func(h *host) string { return h.saved("nft") },
		undone: map[string]func(h *host){},
		stop:   func(h *host) { h.iptables("nft", "-F", "FORWARD") },
	},
	"a last rule that rejects, legacy": {
		start: func(h *host) {
			h.iptables("legacy", "-A", "FORWARD", "-i", "else0", "-j", "ACCEPT")
			h.iptables("legacy", "-A", "FORWARD", "-m", "limit", "-j", "LOG")
			h.iptables("legacy", "-A", "FORWARD", "-j", "REJECT")
		},
		list:   func(h *host) string { return h.saved("legacy") },
		undone: map[string]func(h *host){},
		stop:   func(h *host) { h.iptables("legacy", "-F", "FORWARD") },
	},
	"a table of nft": {
		start: func(h *host) { h.do(nftTable, "nft", "-f", "-") },
		list:  func(h *host) string { return h.do("", "nft", "-s", "list", "table", "inet", "mine") },
		undone: map[string]func(h *host){
			"reload": func(h *host) { h.do("delete table inet mine\n"+nftTable, "nft", "-f", "-") },
			"flush":  func(h *host) { h.do("flush table inet mine", "nft", "-f", "-") },
		},
		stop: func(h *host) { h.do("", "nft", "delete", "table", "inet", "mine") },
	},
	"ufw": {
		start: func(h *host) {
			h.own("/etc/ufw")
			h.do("", "ufw", "--force", "enable")
		},
		list: func(h *host) string { return h.saved("nft") },
		undone: map[string]func(h *host){
			"reload": func(h *host) { h.do("", "ufw", "reload") },
			"disable and enable": func(h *host) {
				h.do("", "ufw", "disable")
				h.do("", "ufw", "--force", "enable")
			},
		},
		stop: func(h *host) { h.do("", "ufw", "disable") },
	},
}

const nftTable = `table inet mine {
	chain forward {
		type filter hook forward priority 10; policy drop;
		ct state invalid drop
		log prefix "dropped "
	}
}`

// clean removes what other programs left in the host's namespace.
func clean(t *testing.T) {
	t.Cleanup(func() {
		for _, args := range [][]string{
			{"nft", "flush", "ruleset"},
			{"iptables-legacy", "-P", "FORWARD", "ACCEPT"}, {"iptables-legacy", "-F"}, {"iptables-legacy", "-X"},
			{"ip6tables-legacy", "-P", "FORWARD", "ACCEPT"}, {"ip6tables-legacy", "-F"}, {"ip6tables-legacy", "-X"},
		} {
			if strings.Contains(args[0], "legacy") {
				if b, _ := os.ReadFile("/proc/net/ip_tables_names"); len(b) == 0 {
					continue // listing it would create it
				}
			}
			if out, err := exec.Command("/usr/sbin/"+args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Errorf("%q: %v: %s", args, err, out)
			}
		}
	})
}

// crowd is a host with two containers on the default network and one on a
// user-defined network.
type crowd struct {
	*host
	a, b, c *container
	network string
}

func newCrowd(h *host) *crowd {
	h.t.Helper()
	id, err := h.m.Create(context.Background(), apinet.CreateRequest{
		Name: "own", Options: map[string]string{"com.docker.network.bridge.name": "hft9"},
	})
	h.ok(err)
	w := &crowd{host: h, network: id}
	w.a, w.b = h.run(h.request("8080:80/tcp")), h.run(h.request())
	r := h.request("8081:80/tcp")
	r.Mode = "own"
	w.c = h.run(r)
	for name, c := range map[string]*container{"a": w.a, "b": w.b, "c": w.c} {
		h.serve(c.Netns, "tcp4", ":80", name)
	}
	h.serve(w.a.Netns, "tcp6", ":80", "a6")
	h.serve(h.lan, "tcp4", ":7000", "lan")
	h.serve(h.lan, "tcp6", ":7000", "lan6")
	h.route(w.b)
	return w
}

func sixes(o *network.Options) { o.IPv6, o.FixedCIDRv6 = true, "fd00:1::/64" }

// works checks all connections that must work, and those that must not.
func (w *crowd) works() {
	w.t.Helper()
	w.answers(w.lan, "tcp", hostAddr+":8080", "a", lanAddr)
	w.answers(w.lan, "tcp", "["+hostAddr6+"]:8080", "a6", lanAddr6)
	w.answers(w.lan, "tcp", hostAddr+":8081", "c", lanAddr)
	w.answers("", "tcp", hostAddr+":8080", "a", "")
	w.answers("", "tcp", w.b.ip()+":80", "b", "")
	w.answers(w.a.Netns, "tcp", lanAddr+":7000", "lan", hostAddr)
	w.answers(w.a.Netns, "tcp", "["+lanAddr6+"]:7000", "lan6", hostAddr6)
	w.answers(w.c.Netns, "tcp", lanAddr+":7000", "lan", hostAddr)
	w.answers(w.a.Netns, "tcp", w.b.ip()+":80", "b", w.a.ip())
	w.answers(w.c.Netns, "tcp", hostAddr+":8080", "a", "")
	w.silent(w.c.Netns, "tcp", w.b.ip()+":80")
	w.silent(w.lan, "tcp", w.b.ip()+":80")
}

// filterFrames makes packet filters see frames between a bridge's ports, as
// other programs on the host may have configured.
func (h *host) filterFrames() {
	h.t.Helper()
	for _, name := range []string{"iptables", "ip6tables"} {
		path := "/proc/sys/net/bridge/bridge-nf-call-" + name
		was, err := os.ReadFile(path)
		h.ok(err)
		h.ok(os.WriteFile(path, []byte("1"), 0))
		h.t.Cleanup(func() {
			if err := os.WriteFile(path, was, 0); err != nil {
				h.t.Error(err)
			}
		})
	}
}

// withoutOurs removes our rules from a list, so that the other program's rules
// can be compared.
func withoutOurs(list string) string {
	lines := strings.Split(list, "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool {
		return strings.HasPrefix(l, ":"+table) || strings.HasPrefix(l, "-A "+table) || strings.HasSuffix(l, "-j "+table)
	})
	return strings.Join(lines, "\n")
}

func TestEverythingWorksBesideAProgramThatDropsForwardedPackets(t *testing.T) {
	for name, f := range foreigns {
		t.Run(name, func(t *testing.T) {
			clean(t)
			h := newHost(t, sixes)
			h.filterFrames()
			h.ok(h.m.Close())
			f.start(h)
			theirs := f.list(h)
			h.open(nil)
			w := newCrowd(h)
			w.works()
			if got := withoutOurs(f.list(h)); name != "a table of nft" && got != theirs {
				t.Errorf("the other program's rules before:\n%s\nafter:\n%s", theirs, got)
			}

			ours := f.list(h)
			if apart := "-A " + table + " -o docker9 -j RETURN\n"; strings.Contains(theirs, "docker9") && strings.Count(ours, apart) != 2 {
				t.Errorf("our containers reach closed ports of the other engine's containers:\n%s", ours)
			}

			// The packets pass without a daemon too, and the next daemon
			// changes nothing.
			h.ok(h.m.Close())
			w.works()
			before := generation(t)
			h.log.take()
			h.open(h.stored(w.a, w.b, w.c))
			if now := generation(t); now != before || f.list(h) != ours {
				t.Errorf("the next daemon sent %d transactions; rules before:\n%s\nafter:\n%s", now-before, ours, f.list(h))
			}
			if got := h.log.take(); got != "" {
				t.Errorf("the next daemon logged: %s", got)
			}
			w.works()

			// The rules of a removed network are removed, too.
			h.ok(h.m.Release(context.Background(), w.c.Sandbox))
			_, err := h.m.Remove(context.Background(), w.network)
			h.ok(err)
			if got := f.list(h); strings.Contains(got, "hft9") {
				t.Errorf("the rules of a removed network still exist:\n%s", got)
			}
			h.m.Leave()
			w.answers(w.lan, "tcp", hostAddr+":8080", "a", lanAddr) // containers run on
			for _, c := range []*container{w.a, w.b} {
				h.ok(h.m.Release(context.Background(), c.Sandbox))
			}
			h.m.Leave()
			if got := f.list(h); got != theirs {
				t.Errorf("the other program's rules before:\n%s\nafter the removal of all of ours:\n%s", theirs, got)
			}
			h.open(nil)
			if got := f.list(h); got == theirs {
				t.Error("the next daemon added no rule")
			}
			h.opts.Iptables, h.opts.Ip6tables = false, false
			h.open(nil)
			if got := f.list(h); got != theirs {
				t.Errorf("the other program's rules before:\n%s\nwith our packet filter disabled:\n%s", theirs, got)
			}
			f.stop(h)
		})
	}
}

func TestWhatUndoesOurRulesInAnotherProgramsFilterIsHealedWithoutARestart(t *testing.T) {
	for name, f := range foreigns {
		h := func(t *testing.T) *crowd {
			clean(t)
			h := newHost(t, sixes)
			h.filterFrames()
			w := newCrowd(h)
			h.log.take()
			f.start(h) // the program starts after us
			h.says("it now accepts")
			w.works()
			return w
		}
		t.Run(name, func(t *testing.T) {
			w := h(t)
			for what, undo := range f.undone {
				t.Log(what)
				w.log.take()
				undo(w.host)
				// ufw keeps our rules in some cases and removes them in others.
				// A packet that is dropped before the rules are restored is
				// retransmitted by the kernel.
				if name != "ufw" {
					w.says("it now accepts")
				}
				w.works()
			}
			w.log.take()
			f.stop(w.host)
			if name != "a table of nft" { // it was deleted
				w.says("no longer needed")
			}
			w.works()
		})
	}
}

// If another program drops packets by an explicit rule, its decision stands.
func TestRulesOfOthersThatNameWhatTheyDropKeepTheirSay(t *testing.T) {
	for _, kind := range []string{"nft", "legacy"} {
		t.Run(kind, func(t *testing.T) {
			clean(t)
			h := newHost(t, nil)
			h.iptables(kind, "-P", "FORWARD", "DROP")
			h.says("it now accepts")
			c := h.run(h.request("8080:80/tcp"))
			h.serve(c.Netns, "tcp4", ":80", "web")
			h.answers(h.lan, "tcp", hostAddr+":8080", "web", lanAddr)
			h.log.take()
			h.do("", "iptables-"+kind, "-A", "FORWARD", "-s", lanAddr, "-j", "DROP")
			h.says("it now accepts") // our rule comes after the new one
			h.silent(h.lan, "tcp", hostAddr+":8080")
			h.answers("", "tcp", hostAddr+":8080", "web", "")
		})
	}
}

func TestWhatUfwDeniesOfRoutesStaysDenied(t *testing.T) {
	clean(t)
	h := newHost(t, nil)
	foreigns["ufw"].start(h)
	h.says("it now accepts")
	c := h.run(h.request("8080:80/tcp"))
	h.serve(c.Netns, "tcp4", ":80", "web")
	h.answers(h.lan, "tcp", hostAddr+":8080", "web", lanAddr)
	h.do("", "ufw", "route", "deny", "from", lanAddr)
	h.silent(h.lan, "tcp", hostAddr+":8080")
	h.do("", "ufw", "route", "delete", "deny", "from", lanAddr)
	h.answers(h.lan, "tcp", hostAddr+":8080", "web", lanAddr)
	foreigns["ufw"].stop(h)
}

func TestWithoutPacketFilterNoRuleIsPutIntoAnothers(t *testing.T) {
	clean(t)
	h := newHost(t, func(o *network.Options) { o.Iptables, o.Ip6tables = false, false })
	h.iptables("nft", "-P", "FORWARD", "DROP")
	h.iptables("legacy", "-P", "FORWARD", "DROP")
	h.open(nil)
	h.run(h.request("8080:80/tcp"))
	if got := h.saved("nft") + h.saved("legacy"); strings.Contains(got, "holdfast") {
		t.Errorf("rules: %s", got)
	}
}

func TestFilterThatCannotBeChangedIsTold(t *testing.T) {
	t.Run("a table that is held", func(t *testing.T) {
		clean(t)
		h := newHost(t, nil)
		h.log.take()
		holder := h.command("nft", "-i")
		in, err := holder.StdinPipe()
		h.ok(err)
		h.ok(holder.Start())
		t.Cleanup(func() {
			in.Close()
			holder.Wait()
		})
		_, err = in.Write([]byte("table inet held { flags owner; chain forward { type filter hook forward priority 0; policy drop; }; }\n"))
		h.ok(err)
		h.says("nft inet held: its owner does not let other programs change it")
		// The message is logged once, although the state is checked repeatedly.
		h.log.take()
		h.ok(h.m.Sync(context.Background()))
		if got := h.log.take(); got != "" {
			t.Errorf("said: %s", got)
		}
	})
	t.Run("no program", func(t *testing.T) {
		clean(t)
		h := newHost(t, nil)
		h.do("", "iptables-legacy", "-P", "FORWARD", "DROP")
		h.says("it now accepts")
		h.ok(h.m.Close())
		h.do("", "iptables-legacy", "-F", "FORWARD")
		const program = "/usr/sbin/xtables-legacy-multi"
		none := filepath.Join(t.TempDir(), "none")
		h.ok(os.WriteFile(none, nil, 0o600))
		h.ok(unix.Mount(none, program, "", unix.MS_BIND, ""))
		t.Cleanup(func() {
			if err := unix.Unmount(program, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		h.log.take()
		h.open(nil)
		h.says("legacy ip filter FORWARD: iptables-legacy-restore is not installed; it needs the rules -i BRIDGE -j ACCEPT and -o BRIDGE -j ACCEPT for hft0")
	})
}
