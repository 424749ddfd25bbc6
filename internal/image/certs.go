// SPDX-License-Identifier: Apache-2.0

package image

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// defaultCertDirs hold the certificates for registries, in a directory for
// each, named HOST or HOST:PORT. As in Docker, its files are *.crt
// (certificates of authorities) and pairs of *.cert and *.key (client
// certificates). The files of both places are used together.
var defaultCertDirs = []string{"/etc/holdfast/certs.d", "/etc/docker/certs.d"}

// certFiles are the certificate files for a host. stamp changes when one of
// them is replaced.
type certFiles struct {
	authorities, pairs []string // paths; a pair is listed by its certificate
	stamp              string
	err                error
}

// certsOf finds the files for a host[:port]. It only lists the directories;
// load reads the files.
func certsOf(dirs []string, host string) certFiles {
	var found certFiles
	names := []string{strings.ToLower(host)}
	if host == hub {
		names = append(names, "docker.io")
	}
	var stamp strings.Builder
	for _, dir := range dirs {
		for _, name := range names {
			if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
				continue
			}
			folder := filepath.Join(dir, name)
			entries, err := os.ReadDir(folder)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				found.err = fmt.Errorf("certificates of the registry %s: %w", host, err)
				return found
			}
			for _, e := range entries {
				path := filepath.Join(folder, e.Name())
				if fi, err := os.Stat(path); err == nil {
					fmt.Fprintf(&stamp, "%s %d %d\n", path, fi.Size(), fi.ModTime().UnixNano())
				}
				switch filepath.Ext(path) {
				case ".crt":
					found.authorities = append(found.authorities, path)
				case ".cert":
					found.pairs = append(found.pairs, path)
				case ".key":
					cert := strings.TrimSuffix(path, ".key") + ".cert"
					if _, err := os.Stat(cert); err != nil {
						found.err = fmt.Errorf("certificates of the registry %s: no certificate %s for the key %s", host, cert, path)
					}
				}
			}
		}
	}
	found.stamp = stamp.String()
	return found
}

// load adds the files to a client's configuration.
func (c certFiles) load(conf *tls.Config) error {
	if c.err != nil {
		return c.err
	}
	if len(c.authorities) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			return fmt.Errorf("load the system's CA certificates: %w", err)
		}
		for _, path := range c.authorities {
			pem, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if !pool.AppendCertsFromPEM(pem) {
				return fmt.Errorf("%s contains no CA certificate in PEM format", path)
			}
		}
		conf.RootCAs = pool
	}
	for _, path := range c.pairs {
		key := strings.TrimSuffix(path, ".cert") + ".key"
		if _, err := os.Stat(key); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("missing key %s for client certificate %s: CA certificates must have the extension .crt", key, path)
		}
		pair, err := tls.LoadX509KeyPair(path, key)
		if err != nil {
			return fmt.Errorf("client certificate %s: %w", path, err)
		}
		conf.Certificates = append(conf.Certificates, pair)
	}
	return nil
}
