// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/test/kit"
)

// authority is a certificate authority of the test's own.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func newAuthority(t *testing.T, dir string) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "swarm-ca"}, NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(20 * 365 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	text, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, "ca.crt"), "CERTIFICATE", der)
	writePEM(t, filepath.Join(dir, "ca.key"), "EC PRIVATE KEY", text)
	return authority{key, cert}
}

// expire replaces a certificate by the same one that ended an hour ago.
func (a authority) expire(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	cert.NotBefore, cert.NotAfter = time.Now().Add(-3*time.Hour), time.Now().Add(-time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, cert.PublicKey.(crypto.PublicKey), a.key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, path, "CERTIFICATE", der)
}

func TestExpiredCertificatesStopNoTask(t *testing.T) {
	t.Parallel()
	n := start(t, kit.Options{LiveRestore: true})
	n.Docker("service", "create", "-d", "--name", "web", image, "sh", "-c", trap)
	n.await("web", 1)
	before := n.lives()
	dir := t.TempDir()
	ca := newAuthority(t, dir)
	n.Docker("swarm", "ca", "--rotate", "-q", "--ca-cert", dir+"/ca.crt", "--ca-key", dir+"/ca.key")
	n.Kill9()
	kit.Kill(t, n.process())
	ca.expire(t, n.DataRoot+"/swarm/certificates/swarm-node.crt")
	n.Start()
	kit.Eventually(t, "the node says that its certificate has expired", func() bool {
		got := n.Docker("info", "-f", "{{.Swarm.LocalNodeState}} {{.Swarm.Error}}")
		return strings.HasPrefix(got, "error") && strings.Contains(got, "certificates have expired") && strings.Contains(got, "--force-new-cluster")
	})
	if r := n.TryDocker("service", "ls"); r.Code == 0 || !strings.Contains(r.Stderr, "certificates have expired") {
		t.Errorf("a request: %d %s", r.Code, r.Stderr)
	}
	if after := n.lives(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("containers before\n%v\nand after\n%v", before, after)
	}
	n.Docker("swarm", "init", "--force-new-cluster", "--listen-addr", n.addr(), "--advertise-addr", n.addr())
	n.await("web", 1)
	if after := n.lives(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("with a new certificate: containers before\n%v\nand after\n%v", before, after)
	}
}

// A worker can't prove any longer who it is, so it has to join again, as another node.
func TestWorkerWithAnExpiredCertificateIsHealedByTheCommandsThatItNames(t *testing.T) {
	t.Parallel()
	h := wired(t, 2)
	m := h.manager()
	dir := t.TempDir()
	ca := newAuthority(t, dir)
	m.Docker("swarm", "ca", "--rotate", "-q", "--ca-cert", dir+"/ca.crt", "--ca-key", dir+"/ca.key")
	w := h.worker(1, m)
	m.Docker("service", "create", "-d", "--name", "web", "--mode", "global", image, "sh", "-c", trap)
	m.await("web", 2)
	here, there := m.lives(), w.lives()
	id := w.Docker("info", "-f", "{{.Swarm.NodeID}}")
	pid := w.process()
	w.Kill9()
	kit.Kill(t, pid)
	ca.expire(t, w.DataRoot+"/swarm/certificates/swarm-node.crt")
	w.Start()
	kit.Eventually(t, "the worker says what to do", func() bool {
		got := w.Docker("info", "-f", "{{.Swarm.LocalNodeState}} {{.Swarm.Error}}")
		return strings.HasPrefix(got, "error") && strings.Contains(got, "certificates have expired") && strings.Contains(got, "docker swarm leave --force")
	})
	if after := w.lives(); fmt.Sprint(after) != fmt.Sprint(there) {
		t.Errorf("containers of the worker before\n%v\nand after\n%v", there, after)
	}
	w.Docker("swarm", "leave", "--force")
	m.Docker("node", "rm", "--force", id)
	w.Docker("swarm", "join", "--token", m.Docker("swarm", "join-token", "-q", "worker"), "--advertise-addr", address(1), address(0)+":2377")
	m.await("web", 2)
	if len(w.lives()) != 1 {
		t.Errorf("containers of the worker that has joined again: %v", w.lives())
	}
	if after := m.lives(); fmt.Sprint(after) != fmt.Sprint(here) {
		t.Errorf("containers of the manager before\n%v\nand after\n%v", here, after)
	}
}
