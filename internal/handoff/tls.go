// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"holdfast/internal/errs"
)

// TLSFiles names the files for TLS on the API's TCP listeners.
type TLSFiles struct {
	CA, Cert, Key string
	// Verify requires clients to have a certificate that CA signed.
	Verify bool
}

// TLSError names the option whose file can't be used.
type TLSError struct {
	Key string
	Err error
}

func (e *TLSError) Error() string { return e.Err.Error() }
func (e *TLSError) Unwrap() error { return e.Err }

// ServerTLS loads the files, or fails with a TLSError. The minimum version is TLS
// 1.2. HTTP/1.1 is the only protocol on it, because attach and exec hijack
// connections.
func ServerTLS(f TLSFiles) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		key := "tlscert"
		if _, kerr := os.Stat(f.Cert); kerr == nil {
			key = "tlskey"
		}
		if errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("could not load X509 key pair (cert: %q, key: %q): %w: make one, or name them by --tlscert and --tlskey", f.Cert, f.Key, err)
		} else {
			err = fmt.Errorf("could not load X509 key pair (cert: %q, key: %q): %w: give a certificate and its own key, in PEM", f.Cert, f.Key, err)
		}
		return nil, &TLSError{key, err}
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
		return nil, &TLSError{"tlscacert", fmt.Errorf("could not read CA certificate %q: %w: name it by --tlscacert, or give --tlsverify=false to let every client in", f.CA, err)}
	}
	c.ClientCAs = x509.NewCertPool()
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, &TLSError{"tlscacert", errs.Invalid("no certificate in %q: want PEM", f.CA)}
	}
	c.ClientAuth = tls.RequireAndVerifyClientCert
	return c, nil
}
