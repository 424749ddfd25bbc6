// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/test/kit"
)

// signRequest is a request of the protocol cfssl.
type signRequest struct {
	Hosts   []string `json:"hosts"`
	Request string   `json:"certificate_request"`
	Profile string   `json:"profile"`
	Subject *struct {
		CN    string           `json:"CN"`
		Names []map[string]any `json:"names"`
	} `json:"subject"`
}

// sign issues a certificate of the authority.
func (a authority) sign(template *x509.Certificate, key any) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	template.SerialNumber, template.NotBefore, template.NotAfter = serial, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	return x509.CreateCertificate(rand.Reader, template, a.cert, key, a.key)
}

// answer signs the key of a request, under the name that the request gives.
func (a authority) answer(req signRequest) ([]byte, error) {
	block, _ := pem.Decode([]byte(req.Request))
	if block == nil {
		return nil, fmt.Errorf("the request %q has no PEM block", req.Request)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject: csr.Subject, DNSNames: req.Hosts, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	if req.Profile == "CA" { // the root of the cluster is signed across
		template.RawSubject, template.IsCA, template.KeyUsage, template.ExtKeyUsage = csr.RawSubject, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign, nil
	}
	if s := req.Subject; s != nil {
		template.Subject = pkix.Name{CommonName: s.CN}
		for _, name := range s.Names {
			if o, ok := name["O"].(string); ok && o != "" {
				template.Subject.Organization = append(template.Subject.Organization, o)
			}
			if ou, ok := name["OU"].(string); ok && ou != "" {
				template.Subject.OrganizationalUnit = append(template.Subject.OrganizationalUnit, ou)
			}
		}
	}
	der, err := a.sign(template, csr.PublicKey)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// serve serves an authority, as a program outside the swarm does. signed returns the names
// that it has signed.
func (a authority) serve(t *testing.T) (url string, signed func() string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "signer"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}, &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var names []string
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var req signRequest
		err := json.NewDecoder(r.Body).Decode(&req)
		var cert []byte
		if err == nil {
			cert, err = a.answer(req)
		}
		if err != nil {
			t.Errorf("a request to the authority: %v", err)
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if req.Subject != nil {
			mu.Lock()
			names = append(names, req.Subject.CN)
			mu.Unlock()
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"success": true, "errors": []any{}, "messages": []any{}, "result": map[string]string{"certificate": string(cert)}})
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, ClientAuth: tls.RequestClientCert}
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL, func() string {
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(names, " ")
	}
}

func TestAnAuthorityOutsideTheSwarmSigns(t *testing.T) {
	t.Parallel()
	m := start(t, kit.Options{LiveRestore: true})
	m.Docker("service", "create", "-d", "--name", "web", image, "sh", "-c", trap)
	m.await("web", 1)
	before := m.lives()
	dir := t.TempDir()
	ca := newAuthority(t, dir)
	url, signed := ca.serve(t)
	m.Docker("swarm", "ca", "--rotate", "-q", "--ca-cert", dir+"/ca.crt", "--external-ca", "protocol=cfssl,url="+url+",cacert="+dir+"/ca.crt")
	id := m.Docker("info", "-f", "{{.Swarm.NodeID}}")
	if got := signed(); !strings.Contains(got, id) {
		t.Errorf("the authority has signed for %q, not for the manager %s", got, id)
	}
	w := prepare(t, kit.Options{LiveRestore: true})
	w.Docker("swarm", "join", "--token", m.Docker("swarm", "join-token", "-q", "worker"), "--listen-addr", w.addr(), "--advertise-addr", w.addr(), m.addr())
	joined := w.Docker("info", "-f", "{{.Swarm.NodeID}}")
	if got := signed(); joined == "" || !strings.Contains(got, joined) {
		t.Errorf("the authority has signed for %q, not for the worker %s", got, joined)
	}
	for _, n := range []*node{m, w} {
		text, err := os.ReadFile(n.DataRoot + "/swarm/certificates/swarm-node.crt")
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		cert, err := x509.ParseCertificate(block.Bytes)
		if err == nil {
			err = cert.CheckSignatureFrom(ca.cert)
		}
		if err != nil {
			t.Errorf("the certificate of a node: %v", err)
		}
	}
	if after := m.lives(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("containers before\n%v\nand after\n%v", before, after)
	}
}
