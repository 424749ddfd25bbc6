// SPDX-License-Identifier: Apache-2.0

//go:build linux

package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// daemon is a private holdfastd, and the later ones on the same root.
type daemon struct {
	binary, root string
	socket       string
	bridge       string
	cgroup       string // parent of the container's, below each hierarchy's root
	address      string // of the bridge, with its subnet's length
	execRoot     string
	log          io.Writer
	kept         *os.File // the daemon's log, if it is not shown

	cmd   *exec.Cmd     // nil before the first start
	ended chan struct{} // closed once cmd is reaped
	err   error         // how it ended; valid once ended is closed
	ready chan struct{} // closed once cmd has reported that it is ready
}

func newDaemon(binary, root string, log io.Writer) (*daemon, error) {
	d := &daemon{
		binary:   binary,
		root:     root,
		execRoot: filepath.Join(root, "run"),
		socket:   filepath.Join(root, "run", "holdfast.sock"),
		// The name of a link has at most 15 characters.
		bridge: fmt.Sprintf("hfd%d", os.Getpid()),
		log:    log,
	}
	d.cgroup = d.bridge
	var err error
	if d.address, err = freeSubnet(); err != nil {
		return nil, err
	}
	// Live restore is set as Docker documents it: by this option in this file.
	if err := os.WriteFile(d.config(), []byte("{\n  \"live-restore\": true\n}\n"), 0o600); err != nil {
		return nil, err
	}
	if log == nil {
		kept, err := os.Create(filepath.Join(root, "daemon.log"))
		if err != nil {
			return nil, err
		}
		d.kept = kept
	}
	return d, nil
}

func (d *daemon) config() string { return filepath.Join(d.root, "daemon.json") }

func (d *daemon) args() []string {
	return []string{
		"--config-file", d.config(),
		"--data-root", filepath.Join(d.root, "data"),
		"--exec-root", d.execRoot,
		"--pidfile", filepath.Join(d.root, "holdfastd.pid"),
		"--host", "unix://" + d.socket,
		"--group", "", // only root may use the API
		"--bridge", d.bridge,
		"--bip", d.address,
		// With the systemd driver the parent would be a slice, which systemd
		// owns.
		"--exec-opt", "native.cgroupdriver=cgroupfs",
		"--cgroup-parent", "/" + d.cgroup,
	}
}

// start returns once the daemon has reported that it is ready, or has ended.
func (d *daemon) start(ctx context.Context) error {
	if err := d.launch(); err != nil {
		return err
	}
	return d.awaitReady(ctx)
}

func (d *daemon) launch() error {
	// The daemon reports that it is ready as it does to systemd: by a datagram.
	notify := filepath.Join(d.root, "notify")
	if err := os.Remove(notify); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		return err
	}
	cmd := exec.Command(d.binary, d.args()...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify)
	cmd.Stdout, cmd.Stderr = d.log, d.log
	if d.kept != nil {
		cmd.Stdout, cmd.Stderr = d.kept, d.kept
	}
	// In its own process group the daemon does not receive the terminal's
	// Ctrl-C.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return errors.Join(err, conn.Close())
	}
	ended, ready := make(chan struct{}), make(chan struct{})
	d.cmd, d.ended, d.ready = cmd, ended, ready
	go func() {
		d.err = cmd.Wait()
		conn.Close() // ends the goroutine that reads from conn
		close(ended)
	}()
	go func() {
		if awaitReady(conn) {
			close(ready)
		}
	}()
	return nil
}

func (d *daemon) awaitReady(ctx context.Context) error {
	select {
	case <-d.ready:
		return nil
	case <-d.ended:
		return fmt.Errorf("the daemon ended before it was ready: %w", exitError(d.err))
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// awaitReady reads notifications until one contains READY=1.
func awaitReady(conn *net.UnixConn) bool {
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return false
		}
		for line := range bytes.Lines(buf[:n]) {
			if string(bytes.TrimSpace(line)) == "READY=1" {
				return true
			}
		}
	}
}

func exitError(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

func (d *daemon) pid() int { return d.cmd.Process.Pid }

func (d *daemon) alive() bool {
	if d.cmd == nil {
		return false
	}
	select {
	case <-d.ended:
		return false
	default:
		return true
	}
}

// kill ends the daemon with SIGKILL and returns once it is gone.
func (d *daemon) kill() error {
	if err := d.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("kill the daemon: %w", err)
	}
	<-d.ended
	return nil
}

// stop stops the daemon gracefully, or kills it when ctx ends first.
func (d *daemon) stop(ctx context.Context) error {
	if !d.alive() {
		return nil
	}
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-d.ended:
		return nil
	case <-ctx.Done():
		return errors.Join(errors.New("the daemon did not stop when asked to, and was killed"), d.kill())
	}
}

// showLog prints the log of a daemon that was not shown while it ran.
func (d *daemon) showLog(out io.Writer) {
	if d.kept == nil {
		return
	}
	raw, err := os.ReadFile(d.kept.Name())
	if err != nil || len(raw) == 0 {
		return
	}
	fmt.Fprintln(out, "\nthe daemon's log:")
	for line := range bytes.Lines(raw) {
		fmt.Fprintf(out, "  %s", line)
	}
	fmt.Fprintln(out)
}
