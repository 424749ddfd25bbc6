package handoff

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
)

// TLSFiles name what the API's TCP listeners need to speak TLS.
type TLSFiles struct {
	CA, Cert, Key string
	// Verify asks clients for a certificate that CA signed.
	Verify bool
}

// ServerTLS loads the files. TLS 1.2 is the oldest that is spoken, and HTTP/1.1
// the only protocol on it, as attach and exec take connections over.
func ServerTLS(f TLSFiles) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("could not load X509 key pair (cert: %q, key: %q): %w: make one, or name them by --tlscert and --tlskey", f.Cert, f.Key, err)
		}
		return nil, fmt.Errorf("could not load X509 key pair (cert: %q, key: %q): %w", f.Cert, f.Key, err)
	}
	c := &tls.Config{
		Certificates: []tls.Certificate{cert},
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"http/1.1"},
	}
	if !f.Verify {
		return c, nil
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, fmt.Errorf("could not read CA certificate %q: %w: name it by --tlscacert, or give --tlsverify=false to let every client in", f.CA, err)
	}
	c.ClientCAs = x509.NewCertPool()
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("no certificate in %q: want PEM", f.CA))
	}
	c.ClientAuth = tls.RequireAndVerifyClientCert
	return c, nil
}
