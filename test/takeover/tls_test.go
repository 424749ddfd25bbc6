// SPDX-License-Identifier: Apache-2.0

package takeover

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"

	"holdfast/test/kit"
)

// selfSigned writes a certificate for 127.0.0.1 and its key.
func selfSigned(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*pem.Block{"/cert.pem": {Type: "CERTIFICATE", Bytes: der}, "/key.pem": {Type: "EC PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(dir+name, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir + "/cert.pem", dir + "/key.pem"
}

func TestAttachedTerminalOverTLSGoesOnOverTakeovers(t *testing.T) {
	t.Parallel()
	d := kit.New(t, kit.Options{LiveRestore: true})
	cert, key := selfSigned(t, d.Root)
	d.SetFlags("-H", d.Host, "-H", "tcp://127.0.0.1:0", "--tls", "--tlsverify=false", "--tlscert", cert, "--tlskey", key)
	d.Start()
	d.Load(image, kit.Busybox(t, nil))
	_, rest, _ := strings.Cut(d.Log(), "API listen on tcp://")
	address := rest[:strings.IndexAny(rest, "\"\n")]
	d.Holdfast("run", "-d", "-i", "--name", "cat", image, "sh", "-c", "while read x && [ $x != end ]; do echo $x; done")

	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	io.WriteString(conn, "POST /containers/cat/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n")
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp, err)
	}
	out, in := io.Pipe()
	go func() {
		_, err := stdcopy.StdCopy(in, io.Discard, r)
		in.CloseWithError(err)
	}()
	echoed := lines(out)
	for _, word := range []string{"one", "two", "three"} {
		io.WriteString(conn, word+"\n")
		if got := await(t, "the echo", echoed); got != word {
			t.Errorf("%q came back for %q", got, word)
		}
		d.Takeover()
	}
	io.WriteString(conn, "end\n")
	for range echoed {
		t.Error("more bytes came back than were sent")
	}
	conn.Close()
	for _, old := range d.Predecessors() {
		select {
		case <-old.Exited:
		case <-time.After(patience):
			t.Error("an old daemon without a stream does not exit")
		}
	}
}
