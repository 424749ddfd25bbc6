// SPDX-License-Identifier: Apache-2.0

// Package networks tests user-defined networks as a user meets them: with the
// docker command, real sockets and other machines. Each promise is checked
// three times: under a daemon, after it was killed with SIGKILL, and under the
// next daemon. It needs root.
//
// The test process runs in a network namespace of its own, which stands for the
// host. So the tests don't affect the interfaces of the real host.
package networks

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"

	"holdfast/test/kit"
)

const (
	machineEnv = "HOLDFAST_TEST_NETWORKS_MACHINE"
)

func TestMain(m *testing.M) {
	kit.Isolate(0)
	if err := answerNobody(); err != nil {
		fmt.Fprintln(os.Stderr, "name server:", err)
		os.Exit(1)
	}
	kit.Main(m)
}

const image = "busybox:test"

// server answers on port 80 with its host name.
const server = `mkdir -p /srv; hostname > /srv/index.html; exec httpd -f -p 80 -h /srv`

// house is a daemon whose address pools no other test's daemon uses.
type house struct {
	*testing.T
	d *kit.Daemon
	// ids are the IDs, by name, of the containers that run started.
	ids map[string]string
	// net is the beginning of the IPv4 addresses of this test: two bytes, as in
	// "10.3". The daemon's pools are its upper half.
	net  string
	pids map[string]int
}

var houses atomic.Int32

func newHouse(t *testing.T, config map[string]any) *house {
	t.Helper()
	n := houses.Add(1)
	h := &house{T: t, net: fmt.Sprintf("10.%d", n), pids: map[string]int{}, ids: map[string]string{}}
	all := map[string]any{"dns": []string{nowhere}, "default-address-pools": []map[string]any{{"base": h.net + ".128.0/17", "size": 24}}}
	for k, v := range config {
		all[k] = v
	}
	h.d = kit.Start(t, kit.Options{LiveRestore: true, Config: all})
	t.Cleanup(h.clean)
	h.d.Load(image, kit.Busybox(t, nil))
	return h
}

// clean removes containers and networks, and checks that no resources of
// networks are left over.
func (h *house) clean() {
	if h.Failed() {
		return // the resources are removed with the namespace
	}
	if !h.d.Running() {
		h.d.Start()
	}
	if ids := strings.Fields(h.d.Docker("ps", "-aq")); len(ids) > 0 {
		h.d.Docker(append([]string{"rm", "-f"}, ids...)...)
	}
	var bridges []string
	for _, id := range strings.Fields(h.d.Docker("network", "ls", "-q", "--no-trunc", "--filter", "type=custom")) {
		bridges = append(bridges, "br-"+id[:12], "dm-"+id[:12])
		h.d.Docker("network", "rm", id)
	}
	for _, b := range bridges {
		if _, err := netlink.LinkByName(b); err == nil {
			h.Errorf("left behind: link %s", b)
		}
	}
	// Bridges of other tests' daemons may exist as well.
	rules := h.rules()
	for _, b := range bridges {
		if strings.Contains(rules, b) {
			h.Errorf("rules of removed networks are left over:\n%s", rules)
			break
		}
	}
}

// always runs a check under the daemon, after it was killed with SIGKILL, and
// under the next daemon. Meanwhile the state in the kernel must not change.
func (h *house) always(check func()) {
	h.Helper()
	check()
	before := h.kernel()
	h.d.Kill9()
	h.Log("without the daemon")
	check()
	h.d.Start()
	if after := h.kernel(); after != before {
		h.Errorf("the new daemon changed the state in the kernel:\n%s\nbefore:\n%s", less(after, before), less(before, after))
	}
	h.Log("with the next daemon")
	check()
}

// kernel lists the interfaces, addresses and routes of the daemon's networks in
// the kernel.
func (h *house) kernel() string {
	h.Helper()
	var b strings.Builder
	for line := range strings.Lines(h.rules()) {
		if !within.MatchString(line) {
			b.WriteString(line)
		}
	}
	for line := range strings.Lines(h.host("ip", "-o", "addr") + h.host("ip", "route")) {
		if strings.Contains(" "+line, " "+h.net+".") {
			// The kernel sets "linkdown" with a delay after a bridge has lost
			// its last port.
			b.WriteString(strings.ReplaceAll(line, " linkdown", ""))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(h.pids)) {
		// Link-local addresses, which the kernel assigns itself, and
		// "tentative" are left out.
		b.WriteString(name + "\n")
		for line := range strings.Lines(h.in(name, "sh", "-c", "ip addr; ip route; cat /etc/hosts /etc/resolv.conf")) {
			if !strings.Contains(line, "fe80::") {
				b.WriteString(strings.ReplaceAll(line, " tentative", ""))
			}
		}
	}
	return b.String()
}

// within matches a rule of the chain rest for a bridge of another test's
// daemon.
var within = regexp.MustCompile(`^\s*iifname "[^"]+" oifname "[^"]+" accept\n?$`)

// less returns the lines of a that are not in b.
func less(a, b string) string {
	var out strings.Builder
	for line := range strings.Lines(a) {
		if !strings.Contains(b, line) {
			out.WriteString(line)
		}
	}
	return out.String()
}

// rules lists the packet filter's rules. A daemon with the packet filter
// disabled has none.
func (h *house) rules() string {
	h.Helper()
	out, err := try("nft", "list", "table", "inet", h.d.Table)
	if err != nil && strings.Contains(out, "No such file") {
		return ""
	}
	if err != nil {
		h.Fatalf("nft: %v\n%s", err, out)
	}
	return out
}

// run starts a container.
func (h *house) run(name string, args ...string) {
	h.Helper()
	h.ids[name] = h.d.Docker(append([]string{"run", "-d", "--name", name, "--hostname", name}, args...)...)
	h.know(name)
}

// serve starts a container whose web server answers with its name.
func (h *house) serve(name string, args ...string) {
	h.Helper()
	h.run(name, append(args, image, "sh", "-c", server)...)
}

// know records a container's process, so that in works without a daemon.
func (h *house) know(name string) {
	h.Helper()
	pid, err := strconv.Atoi(h.inspect(name, "{{.State.Pid}}"))
	if err != nil || pid == 0 {
		h.Fatalf("%s has no process: %v", name, err)
	}
	h.pids[name] = pid
}

func (h *house) inspect(name, format string) string {
	h.Helper()
	return h.d.Docker("inspect", "-f", format, name)
}

// address returns the address of a container on a network.
func (h *house) address(name, network string) string {
	h.Helper()
	return h.inspect(name, fmt.Sprintf("{{(index .NetworkSettings.Networks %q).IPAddress}}", network))
}

func (h *house) addresses(network string, names ...string) (all []string) {
	h.Helper()
	for _, n := range names {
		all = append(all, h.address(n, network))
	}
	return all
}

func (h *house) address6(name, network string) string {
	h.Helper()
	return h.inspect(name, fmt.Sprintf("{{(index .NetworkSettings.Networks %q).GlobalIPv6Address}}", network))
}

// host runs a command on the host.
func (h *house) host(args ...string) string {
	h.Helper()
	out, err := try(args...)
	if err != nil {
		h.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func try(args ...string) (string, error) {
	var out bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// in runs a command in a container, without the daemon.
func (h *house) in(name string, args ...string) string {
	h.Helper()
	out, err := h.tryIn(name, args...)
	if err != nil {
		h.Fatalf("in %s: %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func (h *house) tryIn(name string, args ...string) (string, error) {
	return try(append([]string{"nsenter", "-t", strconv.Itoa(h.pids[name]), "-m", "-n", "-u", "-p", "--"}, args...)...)
}

// fetch returns the page that a container gets from an address or name, with or
// without a port. A name is resolved by the container's name server.
func (h *house) fetch(from, to string) (got string) {
	h.Helper()
	port := 80
	if host, p, err := net.SplitHostPort(to); err == nil {
		port, _ = strconv.Atoi(p)
		to = host
	}
	if net.ParseIP(to) == nil {
		r := h.ask(from, to, dnsmessage.TypeA, false)
		if len(r.all) == 0 {
			return "no such name"
		}
		to = r.all[0]
	}
	h.within(from, func() error {
		got = get(to, port)
		return nil
	})
	return got
}

// reaches checks that the server "to" answers.
func (h *house) reaches(from, to, want string) {
	h.Helper()
	// A server that was just started may not listen yet.
	deadline := time.Now().Add(5 * time.Second)
	for {
		got := h.fetch(from, to)
		if got == want {
			return
		}
		if time.Now().After(deadline) || got == "no such name" {
			h.Errorf("%s asks %s: got %q, want %q", from, to, got, want)
			return
		}
	}
}

// isolated checks that no packet gets from a container to an address: a SYN is
// neither answered nor refused within half a second.
func (h *house) isolated(from, address string) {
	h.Helper()
	h.within(from, func() error {
		if err := connect(address, 80, 400*time.Millisecond); err == nil {
			h.Errorf("%s reaches %s", from, address)
		}
		return nil
	})
}

// within runs f on a thread in a container's network namespace. f may use only
// plain system calls, because those stay on its thread.
func (h *house) within(name string, f func() error) {
	h.Helper()
	if err := inNamespace(h.pids[name], f); err != nil {
		h.Errorf("in %s: %v", name, err)
	}
}

func inNamespace(pid int, f func() error) error {
	return kit.InNetns(fmt.Sprintf("/proc/%d/ns/net", pid), f)
}

// refused checks that a docker command fails with certain words.
func (h *house) refused(words string, args ...string) {
	h.Helper()
	r := h.d.TryDocker(args...)
	if r.Code == 0 || !strings.Contains(r.Stderr, words) {
		h.Errorf("docker %s: exit code %d, %q; want %q", strings.Join(args, " "), r.Code, r.Stdout+r.Stderr, words)
	}
}

// has checks that a text contains words.
func (h *house) has(what, text string, words ...string) {
	h.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			h.Errorf("%s: no %q in %q", what, w, text)
		}
	}
}

func (h *house) equal(what, got, want string) {
	h.Helper()
	if got != want {
		h.Errorf("%s: got %q, want %q", what, got, want)
	}
}

// machine starts another machine: a process in a network namespace, with a veth
// pair to the host.
func (h *house) machine(link, hostAddr, addr string) (pid int) {
	h.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestMachine$")
	cmd.Env = append(os.Environ(), machineEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	in, err := cmd.StdinPipe()
	var said io.ReadCloser
	if err == nil {
		said, err = cmd.StderrPipe()
	}
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		h.Fatal(err)
	}
	if _, err := bufio.NewReader(said).ReadString('\n'); err != nil {
		h.Fatalf("the machine does not answer: %v", err)
	}
	h.Cleanup(func() {
		in.Close()
		cmd.Wait()
		exec.Command("ip", "link", "del", link).Run()
	})
	pid = cmd.Process.Pid
	p := strconv.Itoa(pid)
	h.host("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", p)
	h.host("ip", "link", "set", link, "up")
	if hostAddr != "" {
		h.host("ip", "addr", "add", hostAddr, "dev", link)
	}
	h.host("nsenter", "-t", p, "-n", "--", "sh", "-c", "ip link set lo up; ip link set eth0 up; ip addr add "+addr+" dev eth0")
	return pid
}

// TestMachine is the process of machine: it serves port 80 and exits at the end
// of its input. Without machine's environment variable it does nothing.
func TestMachine(t *testing.T) {
	if os.Getenv(machineEnv) == "" {
		return
	}
	l, err := net.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%s\n", c.RemoteAddr())
			c.Close()
		}
	}()
	fmt.Fprintln(os.Stderr, "ready")
	os.Stdin.Read(make([]byte, 1))
}

func sorted(s []string) []string { return slices.Sorted(slices.Values(s)) }
