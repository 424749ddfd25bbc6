// SPDX-License-Identifier: Apache-2.0

package truth

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/network/dump"
	"holdfast/test/cert"
	"holdfast/test/kit"
)

// secured puts TLS in front of a registry, at an address that is not the loopback
// address: a registry there is never spoken to without a check of its certificate.
func secured(t *testing.T, reg *kit.Registry, server cert.Pair, clients *x509.CertPool) (host string) {
	t.Helper()
	back := &url.URL{Scheme: "http", Host: reg.Host}
	front := httptest.NewUnstartedServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(back)
		r.Out.Host = r.In.Host // the registry answers with addresses of its own by it
		r.SetXForwarded()
	}})
	front.Config.ErrorLog = log.New(io.Discard, "", 0)
	front.TLS = &tls.Config{Certificates: []tls.Certificate{server.TLS(t)}}
	if clients != nil {
		front.TLS.ClientAuth, front.TLS.ClientCAs = tls.RequireAndVerifyClientCert, clients
	}
	l, err := net.Listen("tcp4", hostAddress(t)+":0")
	if err != nil {
		t.Fatal(err)
	}
	front.Listener.Close()
	front.Listener = l
	front.StartTLS()
	t.Cleanup(front.Close)
	return l.Addr().String()
}

// hostAddress returns an IPv4 address of this host that is not a loopback
// address.
func hostAddress(t *testing.T) string {
	t.Helper()
	addrs, err := dump.Prefixes()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if a.Addr().Is4() && a.Addr().IsGlobalUnicast() {
			return a.Addr().String()
		}
	}
	t.Fatal("this host has no address but its loopback address")
	return ""
}

// certsFolder makes the folder of a registry's certificates, which is removed
// when the test ends with all that was made for it.
func certsFolder(t *testing.T, place, host string) string {
	t.Helper()
	folder := filepath.Join(place, host)
	missing := folder
	for {
		if _, err := os.Stat(filepath.Dir(missing)); err == nil {
			break
		}
		missing = filepath.Dir(missing)
	}
	t.Cleanup(func() { os.RemoveAll(missing) })
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	return folder
}

func put(t *testing.T, folder string, files map[string][]byte) {
	t.Helper()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(folder, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRegistryIsSpokenToByTheCertificatesOfItsFolder: with ca.crt a registry is
// trusted whose authority the host does not know, and with client.cert and
// client.key one is used that demands a certificate of its clients. A file that is
// put there, replaced or removed counts at once.
func TestRegistryIsSpokenToByTheCertificatesOfItsFolder(t *testing.T) {
	const place = "/etc/holdfast/certs.d"
	reg := kit.StartRegistry(t, nil)
	reg.Push("app:1", kit.Busybox(t, nil))
	addr := net.ParseIP(hostAddress(t))
	ca, other := cert.New(t, "authority", nil), cert.New(t, "another authority", nil)
	clients := cert.New(t, "authority of the clients", nil)
	mine, foreign := cert.New(t, "client", &clients, addr), cert.New(t, "client", &other, addr)

	d := kit.Start(t, kit.Options{})
	refused := func(what string, r kit.Result, words ...string) {
		t.Helper()
		if r.Code == 0 {
			t.Errorf("%s: it is accepted", what)
		}
		for _, w := range words {
			if !strings.Contains(r.Stderr, w) {
				t.Errorf("%s: %q, want %q", what, r.Stderr, w)
			}
		}
	}
	fresh := func(ref string) {
		d.TryDocker("rmi", "-f", ref)
	}

	t.Run("authority", func(t *testing.T) {
		host := secured(t, reg, cert.New(t, "registry", &ca, addr), nil)
		ref := host + "/app:1"
		refused("no certificates", d.TryDocker("pull", ref), "certificate signed by unknown authority")
		folder := certsFolder(t, place, host)
		put(t, folder, map[string][]byte{"ca.crt": other.Cert})
		refused("another authority", d.TryDocker("pull", ref), "certificate signed by unknown authority")
		put(t, folder, map[string][]byte{"ca.crt": []byte("nonsense")})
		refused("no certificate in the file", d.TryDocker("pull", ref), folder+"/ca.crt")
		put(t, folder, map[string][]byte{"ca.crt": ca.Cert})
		d.Docker("pull", ref)
		same(t, "the image", d.Docker("run", "--rm", ref, "echo", "runs"), "runs")
		d.Docker("tag", ref, host+"/pushed:1")
		d.Docker("push", host+"/pushed:1")
		fresh(host + "/pushed:1")
		d.Docker("pull", host+"/pushed:1")
		if err := os.Remove(folder + "/ca.crt"); err != nil {
			t.Fatal(err)
		}
		fresh(ref)
		fresh(host + "/pushed:1")
		refused("the file is removed", d.TryDocker("pull", ref), "certificate signed by unknown authority")
	})

	t.Run("client", func(t *testing.T) {
		host := secured(t, reg, cert.New(t, "registry", &ca, addr), clients.Pool(t))
		ref := host + "/app:1"
		folder := certsFolder(t, place, host)
		put(t, folder, map[string][]byte{"ca.crt": ca.Cert})
		refused("no client certificate", d.TryDocker("pull", ref), "certificate required")
		put(t, folder, map[string][]byte{"client.cert": foreign.Cert, "client.key": foreign.Key})
		refused("a client certificate of another authority", d.TryDocker("pull", ref), "tls")
		put(t, folder, map[string][]byte{"client.key": mine.Key})
		refused("a key of another certificate", d.TryDocker("pull", ref), folder+"/client.cert", "private key does not match")
		put(t, folder, map[string][]byte{"client.cert": mine.Cert})
		d.Docker("pull", ref)
		d.Docker("tag", ref, host+"/by-client:1")
		d.Docker("push", host+"/by-client:1")
		fresh(host + "/by-client:1")
		d.Docker("pull", host+"/by-client:1")
		if err := os.Remove(folder + "/client.cert"); err != nil {
			t.Fatal(err)
		}
		refused("a key without its certificate", d.TryDocker("pull", ref), folder+"/client.cert", folder+"/client.key")
	})

	// A name of another registry, and the address of this one with another port,
	// have folders of their own.
	t.Run("another port", func(t *testing.T) {
		host := secured(t, reg, cert.New(t, "registry", &ca, addr), nil)
		put(t, certsFolder(t, place, strings.Split(host, ":")[0]+":1"), map[string][]byte{"ca.crt": ca.Cert})
		refused("the folder of another port", d.TryDocker("pull", host+"/app:1"), "certificate signed by unknown authority")
	})
}
