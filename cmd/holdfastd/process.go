// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"holdfast/internal/config"
	"holdfast/internal/handoff"
)

// settle sets the process's properties before anything is started.
func settle(cfg *config.Config, log *slog.Logger) {
	syscall.Umask(0o022)
	// net/http and child processes read the proxies from the environment. The
	// configuration takes precedence over the inherited values.
	for name, value := range map[string]string{"HTTP_PROXY": cfg.HTTPProxy, "HTTPS_PROXY": cfg.HTTPSProxy, "NO_PROXY": cfg.NoProxy} {
		if value != "" {
			os.Setenv(name, value)
		}
	}
	if cfg.Given("oom-score-adjust") {
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(cfg.OOMScoreAdjust)), 0); err != nil {
			log.Warn("could not set oom_score_adj: lowering it needs CAP_SYS_RESOURCE", "error", err)
		}
	}
}

// findShim returns the path of holdfast-shim: as configured, or beside this
// executable.
func findShim(cfg *config.Config) (string, error) {
	path := cfg.Shim
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find holdfast-shim: %w: name it by --shim", err)
		}
		path = filepath.Join(filepath.Dir(self), "holdfast-shim")
	}
	if _, err := exec.LookPath(path); err != nil {
		return "", fmt.Errorf("holdfast-shim is needed to run containers: %w: put it there, or name it by --shim", err)
	}
	return path, nil
}

// tlsFiles returns the configured files, or those in $DOCKER_CERT_PATH or
// ~/.docker, as in dockerd.
func tlsFiles(cfg *config.Config) handoff.TLSFiles {
	dir := os.Getenv("DOCKER_CERT_PATH")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			home = "/root"
		}
		dir = filepath.Join(home, ".docker")
	}
	or := func(path, name string) string {
		if path != "" {
			return path
		}
		return filepath.Join(dir, name)
	}
	return handoff.TLSFiles{
		CA: or(cfg.TLSCACert, "ca.pem"), Cert: or(cfg.TLSCert, "cert.pem"), Key: or(cfg.TLSKey, "key.pem"),
		Verify: cfg.VerifyClients(),
	}
}

// dumpStacks writes the stacks of all goroutines to a file in dir.
func dumpStacks(dir string, now time.Time) (string, error) {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	path := filepath.Join(dir, "goroutine-stacks-"+now.Format("2006-01-02T150405Z0700")+".log")
	if err := os.WriteFile(path, buf, 0o600); err != nil {
		return "", fmt.Errorf("dump goroutine stacks: %w", err)
	}
	return path, nil
}
