// SPDX-License-Identifier: Apache-2.0

package script

import (
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"holdfast/test/cert"
	"holdfast/test/kit"
)

// Scripts that start dockerd must be able to start holdfastd, so every flag of
// dockerd is known. A flag without support is refused with its name.
func TestEveryFlagOfDockerdIsKnown(t *testing.T) {
	t.Parallel()
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused := map[string]bool{}
	for _, flag := range []string{
		"--add-runtime=other=/bin/true", "--allow-direct-routing", "--authorization-plugin=x", "--bip=10.9.8.1/24",
		"--bip6=fd00:9::1/64", "--bridge=none", "--bridge-accept-fwmark=1", "--cdi-spec-dir=/etc/cdi", "--cgroup-parent=/x",
		"--config-file=" + file, "--containerd=/run/x.sock", "--containerd-namespace=x", "--containerd-plugins-namespace=x",
		"--cpu-rt-period=1000", "--cpu-rt-runtime=1000", "--cri-containerd", "--data-root=/tmp/x", "--debug", "-D",
		"--default-address-pool=base=10.7.0.0/16,size=24", "--default-cgroupns-mode=private", "--default-gateway=172.17.0.1",
		"--default-gateway-v6=fd00::1", "--default-ipc-mode=private", "--default-network-opt=bridge=com.docker.network.driver.mtu=1400",
		"--default-runtime=runc", "--default-shm-size=32M", "--default-ulimit=nofile=100:200", "--dns=10.0.0.53", "--dns-opt=ndots:2",
		"--dns-search=example.org", "--exec-opt=native.cgroupdriver=cgroupfs", "--exec-root=/tmp/x", "--experimental",
		"--feature=containerd-snapshotter=true", "--firewall-backend=iptables", "--fixed-cidr=172.17.0.0/24", "--fixed-cidr-v6=fd00::/80",
		"--group=root", "-G=root", "--host=unix:///tmp/x.sock", "-H=unix:///tmp/x.sock", "--host-gateway-ip=10.0.0.1",
		"--http-proxy=http://10.0.0.1:80", "--https-proxy=http://10.0.0.1:80", "--icc=false", "--init", "--init-path=/bin/tini",
		"--insecure-registry=10.0.0.0/8", "--ip=127.0.0.1", "--ip-forward=false", "--ip-forward-no-drop", "--ip-masq=false",
		"--ip6tables=false", "--iptables=false", "--ipv6", "--label=a=b", "--live-restore", "--log-driver=local", "--log-format=json",
		"--log-level=warn", "-l=warn", "--log-opt=max-size=1m", "--max-concurrent-downloads=2", "--max-concurrent-uploads=2",
		"--max-download-attempts=2", "--metrics-addr=127.0.0.1:9", "--min-api-version=1.40", "--mtu=1400",
		"--network-control-plane-mtu=1400", "--no-new-privileges", "--no-proxy=localhost", "--node-generic-resource=a=b",
		"--nri-opts=enable=false", "--oom-score-adjust=-500", "--pidfile=/tmp/x.pid", "-p=/tmp/x.pid", "--raw-logs",
		"--registry-mirror=http://127.0.0.1:5000", "--rootless", "--seccomp-profile=unconfined", "--selinux-enabled",
		"--shutdown-timeout=5", "--storage-driver=overlay2", "-s=overlay2", "--storage-opt=a=b", "--swarm-default-advertise-addr=lo",
		"--tls", "--tlscacert=" + file, "--tlscert=" + file, "--tlskey=" + file, "--tlsverify", "--userland-proxy=false",
		"--userland-proxy-path=/x", "--userns-remap=default",
	} {
		out, err := exec.Command(kit.Binary(t, "holdfastd"), "--validate", flag).CombinedOutput()
		if err == nil {
			continue
		}
		name, _, _ := strings.Cut(strings.TrimLeft(flag, "-"), "=")
		if name == "tlsverify" {
			name = "tlscert" // the flag needs a certificate, which does not exist
		}
		if !strings.Contains(string(out), name) || strings.Contains(string(out), "unknown") || strings.Contains(string(out), "flag provided") {
			t.Errorf("%s: %v %s", flag, err, out)
		}
		refused[name] = true
	}
	// Supported flags are not refused.
	for _, name := range []string{"bip", "live-restore", "storage-driver", "default-runtime", "log-opt", "dns", "mtu", "init", "label", "feature", "default-cgroupns-mode"} {
		if refused[name] {
			t.Errorf("--%s is refused", name)
		}
	}
	if out, err := exec.Command(kit.Binary(t, "holdfastd"), "--validate", "--no-such-flag").CombinedOutput(); err == nil || !strings.Contains(string(out), "no-such-flag") {
		t.Errorf("%v %s", err, out)
	}
}

// authority signs certificates for one test.
type authority struct {
	t    *testing.T
	dir  string
	pair cert.Pair
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir(), pair: cert.New(t, "ca", nil)}
	a.pair.Write(t, a.dir, "ca")
	return a
}

// sign writes NAME.pem and NAME-key.pem into the authority's folder.
func (a *authority) sign(name string) {
	a.t.Helper()
	cert.New(a.t, name, &a.pair).Write(a.t, a.dir, name)
}

func TestOverTLSOnlyThoseWithACertificateAreServed(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	ca.sign("server")
	ca.sign("client")
	stranger := newAuthority(t)
	stranger.sign("client")

	d := kit.New(t, kit.Options{})
	d.SetFlags("-H", d.Host, "-H", "tcp://127.0.0.1:0", "--tlsverify", "--tlscacert", ca.dir+"/ca.pem", "--tlscert", ca.dir+"/server.pem", "--tlskey", ca.dir+"/server-key.pem")
	d.Start()
	d.Load(image, kit.Busybox(t, nil))
	_, rest, ok := strings.Cut(d.Log(), "API listen on tcp://")
	if !ok {
		t.Fatal(d.Log())
	}
	address := rest[:strings.IndexAny(rest, "\"\n")]
	as := func(a *authority, args ...string) []string {
		return append([]string{"-H", "tcp://" + address, "--tlsverify", "--tlscacert", ca.dir + "/ca.pem", "--tlscert", a.dir + "/client.pem", "--tlskey", a.dir + "/client-key.pem"}, args...)
	}
	for name, run := range map[string]func(...string) kit.Result{"docker": d.TryDocker, "holdfast": d.TryHoldfast} {
		// Over TCP a stream goes through the daemon, in both directions and to
		// its end.
		if r := run(as(ca, "run", "--rm", image, "sh", "-c", "seq 1 20000; exit 4")...); r.Code != 4 || strings.Count(r.Stdout, "\n") != 20000 {
			t.Errorf("%s: code %d, %d lines, %s", name, r.Code, strings.Count(r.Stdout, "\n"), r.Stderr)
		}
		if r := run(as(stranger, "version")...); r.Code == 0 {
			t.Errorf("%s: a stranger is served: %+v", name, r)
		}
	}
	if resp, err := http.Get("http://" + address + "/_ping"); err == nil {
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			t.Error("served without TLS")
		}
	}
}

// A registry that serves wrong content, or that closes the connection in the
// middle.
func TestBadRegistryLeavesNoImage(t *testing.T) {
	t.Parallel()
	d := kit.Start(t, kit.Options{Config: map[string]any{"max-download-attempts": 1}})
	for name, c := range map[string]struct {
		answer  func(w http.ResponseWriter, blob []byte)
		message string
	}{
		"other content": {func(w http.ResponseWriter, blob []byte) {
			blob[len(blob)/2] ^= 1
			w.Write(blob)
		}, "filesystem layer verification failed for digest sha256:"},
		// The retry resumes at that byte, and is cut off at once.
		"cut off": {func(w http.ResponseWriter, blob []byte) {
			if len(blob) > 1<<20 {
				w.Write(blob[:1<<20])
			}
			panic(http.ErrAbortHandler)
		}, "EOF"},
	} {
		reg := kit.StartRegistry(t, func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/sha256:") {
					next.ServeHTTP(w, r)
					return
				}
				rec := &recorder{header: http.Header{}}
				next.ServeHTTP(rec, r)
				if len(rec.body) < 10_000 { // this is the image's configuration
					w.WriteHeader(rec.status)
					w.Write(rec.body)
					return
				}
				w.Header().Set("Content-Length", rec.header.Get("Content-Length"))
				w.WriteHeader(rec.status)
				c.answer(w, rec.body)
			})
		})
		ref := reg.Push("team/app:1", kit.Image(t, kit.Busybox(t, nil), nil))
		r := d.TryDocker("pull", ref)
		if r.Code == 0 {
			t.Errorf("%s: pulled", name)
		}
		if !strings.Contains(r.Stderr, c.message) {
			t.Errorf("%s: %s", name, r.Stderr)
		}
		if got := d.Docker("images", "-aq"); got != "" {
			t.Errorf("%s: there is %s", name, got)
		}
	}
}

type recorder struct {
	header http.Header
	status int
	body   []byte
}

func (r *recorder) Header() http.Header { return r.header }
func (r *recorder) WriteHeader(s int)   { r.status = s }
func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	r.body = append(r.body, b...)
	return len(b), nil
}
