// SPDX-License-Identifier: Apache-2.0

package truth

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/test/cert"
	"holdfast/test/kit"
)

// halting is a registry that sends the first half of the largest layer and then
// pauses until it is released.
type halting struct {
	mu     sync.Mutex
	layer  string   // path of the largest layer, after it was requested
	ranges []string // requested ranges of that layer
	halted chan struct{}
	goOn   chan struct{}
}

func (h *halting) between(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			next.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(&halfWriter{ResponseWriter: w, h: h, r: r}, r)
	})
}

type halfWriter struct {
	http.ResponseWriter
	h    *halting
	r    *http.Request
	sent int
}

const layerBytes = 8 << 20

func (w *halfWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	if w.sent == 0 {
		w.h.mu.Lock()
		if size, _ := strconv.Atoi(w.Header().Get("Content-Length")); size >= layerBytes {
			w.h.layer = w.r.URL.Path
		}
		if w.r.URL.Path == w.h.layer {
			w.h.ranges = append(w.h.ranges, w.r.Header.Get("Range"))
		}
		w.h.mu.Unlock()
	}
	w.sent += n
	if w.sent >= layerBytes/2 {
		w.ResponseWriter.(http.Flusher).Flush()
		select {
		case <-w.h.goOn:
		default:
			select {
			case w.h.halted <- struct{}{}:
			default:
			}
			select {
			case <-w.h.goOn:
			case <-w.r.Context().Done():
				return n, w.r.Context().Err()
			}
		}
	}
	return n, err
}

func (h *halting) asked() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.ranges...)
}

// TestInterruptedPullGoesOnWhereItEnded: after an interruption, no data that
// the pull has already stored is fetched again.
func TestInterruptedPullGoesOnWhereItEnded(t *testing.T) {
	for name, interrupt := range map[string]func(t *testing.T, d *kit.Daemon, pull *os.Process){
		"by Ctrl-C":               func(t *testing.T, _ *kit.Daemon, pull *os.Process) { _ = pull.Signal(unix.SIGINT) },
		"by a kill of the daemon": func(t *testing.T, d *kit.Daemon, _ *os.Process) { d.Kill9() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := &halting{halted: make(chan struct{}, 1), goOn: make(chan struct{})}
			reg := kit.StartRegistry(t, h.between)
			noise := make([]byte, layerBytes)
			rand.Read(noise)
			ref := reg.Push("big:1", kit.Image(t, kit.Busybox(t, nil), nil, kit.Layer(t, kit.File{Name: "noise", Body: noise})))
			d := kit.Start(t, kit.Options{})
			cmd := d.DockerCommand(context.Background(), "pull", ref)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			select {
			case <-h.halted:
			case <-time.After(time.Minute):
				t.Fatal("the pull has not reached half of the layer")
			}
			waitIngest(t, d, layerBytes/4)
			interrupt(t, d, cmd.Process)
			_ = cmd.Wait()
			close(h.goOn)
			if !d.Running() {
				d.Start()
			}
			d.Docker("pull", ref)
			got := h.asked()
			if last := got[len(got)-1]; !strings.HasPrefix(last, "bytes=") || strings.HasPrefix(last, "bytes=0") {
				t.Errorf("the requested ranges are %q", got)
			}
			same(t, "the image", d.Docker("run", "--rm", ref, "stat", "-c", "%s", "/noise"), "8388608")
		})
	}
}

// waitIngest waits until the daemon has written a number of bytes of a
// download.
func waitIngest(t *testing.T, d *kit.Daemon, want int64) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	dir := d.DataRoot + "/images/content/ingest"
	for {
		files, _ := filepath.Glob(dir + "/*/data")
		for _, f := range files {
			if fi, err := os.Stat(f); err == nil && fi.Size() >= want {
				return
			}
			if _, err := unix.InotifyAddWatch(fd, f, unix.IN_MODIFY); err != nil && err != unix.ENOENT {
				t.Fatal(err)
			}
			if fi, err := os.Stat(f); err == nil && fi.Size() >= want {
				return
			}
		}
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, 60_000); n == 0 || err != nil && err != unix.EINTR {
			t.Fatalf("nothing is written in %s: %v", dir, err)
		}
		_, _ = unix.Read(fd, make([]byte, 4096))
	}
}

func TestRegistryTellsWhatAReferenceMeans(t *testing.T) {
	t.Parallel()
	reg := kit.StartRegistry(t, nil)
	ref := reg.Push("app:1", kit.Busybox(t, nil))
	d := kit.Start(t, kit.Options{})
	var got struct {
		Descriptor struct{ MediaType, Digest string }
		Platforms  []struct{ Architecture, OS string }
	}
	get(t, d, "/v1.51/distribution/"+ref+"/json", &got)
	if !strings.HasPrefix(got.Descriptor.Digest, "sha256:") || len(got.Platforms) != 1 || got.Platforms[0].OS != "linux" || got.Platforms[0].Architecture != kit.Arch() {
		t.Errorf("%+v", got)
	}
	same(t, "nothing is kept of it", d.Docker("images", "-q"), "")
	resp, err := d.HTTP().Get("http://holdfast/v1.51/distribution/" + reg.Host + "/none:1/json")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("an image that does not exist: %s", resp.Status)
	}
	d.Docker("pull", ref)
	var inspect struct {
		Identity struct {
			Pull []struct{ Repository string }
		}
	}
	get(t, d, "/v1.56/images/"+ref+"/json", &inspect)
	if len(inspect.Identity.Pull) != 1 || inspect.Identity.Pull[0].Repository != reg.Host+"/app" {
		t.Errorf("identity %+v", inspect)
	}

	// A push is no pull.
	pushed := reg.Host + "/pushed:1"
	d.Docker("commit", d.Docker("create", ref), pushed)
	d.Docker("push", "-q", pushed)
	inspect.Identity.Pull = nil
	get(t, d, "/v1.56/images/"+pushed+"/json", &inspect)
	if len(inspect.Identity.Pull) != 0 {
		t.Errorf("identity of an image that was only pushed: %+v", inspect)
	}
}

// TestCertificatesOfARegistryAreFoundInTheirFolder: for a registry that
// requires client certificates, the one in the registry's folder is used.
func TestCertificatesOfARegistryAreFoundInTheirFolder(t *testing.T) {
	for _, place := range []string{"/etc/holdfast/certs.d", "/etc/docker/certs.d"} {
		t.Run(strings.Split(place, "/")[2], func(t *testing.T) {
			reg := kit.StartRegistry(t, nil)
			ref := reg.Push("app:1", kit.Busybox(t, nil))
			back := &url.URL{Scheme: "http", Host: reg.Host}
			client := cert.New(t, "client", nil) // signs itself
			front := httptest.NewUnstartedServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(back) }})
			front.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: client.Pool(t)}
			l, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			front.Listener.Close()
			front.Listener = l
			front.StartTLS()
			t.Cleanup(front.Close)
			host := l.Addr().String()
			ref = strings.Replace(ref, reg.Host, host, 1)
			d := kit.Start(t, kit.Options{})
			if r := d.TryDocker("pull", ref); r.Code == 0 {
				t.Fatal("the registry accepts clients without a certificate")
			}
			folder := certsFolder(t, place, host)
			if err := os.WriteFile(folder+"/client.cert", client.Cert, 0o600); err != nil {
				t.Fatal(err)
			}
			if r := d.TryDocker("pull", ref); !strings.Contains(r.Stderr, "missing key "+folder+"/client.key") {
				t.Errorf("a certificate without its key: %+v", r)
			}
			if err := os.WriteFile(folder+"/client.key", client.Key, 0o600); err != nil {
				t.Fatal(err)
			}
			d.Docker("pull", ref)
		})
	}
}

func TestPlatformOfAnImageIsRemovedAlone(t *testing.T) {
	t.Parallel()
	d := start(t, kit.Options{})
	p, err := json.Marshal(map[string]string{"os": "linux", "architecture": "s390x"})
	if err != nil {
		t.Fatal(err)
	}
	remove := func(platform string) (int, string) {
		req, err := http.NewRequest(http.MethodDelete, "http://holdfast/v1.51/images/"+image+"?platforms="+url.QueryEscape(platform), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := d.HTTP().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var b strings.Builder
		_ = resp.Write(&b)
		return resp.StatusCode, b.String()
	}
	if code, body := remove(string(p)); code != http.StatusNotFound {
		t.Errorf("a platform that does not exist: %d %s", code, body)
	}
	d.Docker("create", "--name", "c1", image)
	host := `{"os":"linux","architecture":"` + kit.Arch() + `"}`
	if code, body := remove(host); code != http.StatusConflict {
		t.Errorf("the platform of a container: %d %s", code, body)
	}
	d.Docker("rm", "c1")
	if code, body := remove(host); code != http.StatusOK || !strings.Contains(body, "Deleted") {
		t.Errorf("%d %s", code, body)
	}
	same(t, "what is left of an image of one platform", d.Docker("images", "-q"), "")
}
