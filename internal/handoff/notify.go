// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Notifier reports the daemon's state to the service manager, by the protocol of
// sd_notify(3). Without a NOTIFY_SOCKET it does nothing.
type Notifier struct {
	socket string
	// watchdog is the longest interval between two WATCHDOG=1 messages that the
	// service manager accepts. 0 means that it expects none.
	watchdog time.Duration
}

// NewNotifier removes NOTIFY_SOCKET from the environment, so that no child sends
// messages as the daemon.
func NewNotifier() *Notifier {
	n := &Notifier{socket: os.Getenv("NOTIFY_SOCKET")}
	if usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64); err == nil && usec > 0 {
		// WATCHDOG_PID is ignored: the daemon has no child that it could name, and a
		// successor inherits that of its predecessor.
		n.watchdog = time.Duration(usec) * time.Microsecond
	}
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		os.Unsetenv(name)
	}
	return n
}

// Watch reports to the service manager that this daemon works, as often as its
// unit requires by WatchdogSec=, until the context ends. It calls works to find
// out. While works returns an error nothing is reported, so that the service
// manager ends the process and starts another. These errors are passed to failed.
func (n *Notifier) Watch(ctx context.Context, works func(context.Context) error, failed func(error)) {
	if n.watchdog == 0 {
		return
	}
	// Half of the time, as sd_watchdog_enabled(3) advises.
	half := n.watchdog / 2
	tick := time.NewTicker(half)
	defer tick.Stop()
	for {
		check, cancel := context.WithTimeout(ctx, half)
		err := works(check)
		cancel()
		switch {
		case err == nil:
			_ = n.send(-1, "WATCHDOG=1") // the next message makes up for a lost one
		case ctx.Err() == nil:
			failed(err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Listens reports whether there is a service manager.
func (n *Notifier) Listens() bool { return n.socket != "" }

// Ready reports that the daemon serves, after a start or a reload.
func (n *Notifier) Ready(status string) error {
	return n.send(-1, "READY=1", fmt.Sprintf("MAINPID=%d", os.Getpid()), "STATUS="+oneLine(status))
}

// Reloading reports that a reload has begun. The message has the timestamp that a
// unit of Type=notify-reload requires, to distinguish this reload from an earlier
// one.
func (n *Notifier) Reloading() error {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return fmt.Errorf("read the monotonic clock: %w", err)
	}
	return n.send(-1, "RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", ts.Nano()/1000))
}

// Successor reports which process is the daemon from now on. The service manager
// only accepts messages of the main process that it knows, so the predecessor has
// to send it.
func (n *Notifier) Successor(pid int) error {
	return n.send(-1, fmt.Sprintf("MAINPID=%d", pid))
}

// Stopping reports that a stop has begun.
func (n *Notifier) Stopping() error { return n.send(-1, "STOPPING=1") }

// Status sets the status line that systemctl shows.
func (n *Notifier) Status(s string) error { return n.send(-1, "STATUS="+oneLine(s)) }

// storeFD stores a copy of a descriptor in the service manager, which passes it
// to the next start.
func (n *Notifier) storeFD(name string, f *os.File) error {
	return n.sendFile(f, "FDSTORE=1", "FDNAME="+name)
}

// keepFD is storeFD for a descriptor that stays stored even if its other end is
// closed (FDPOLL=0).
func (n *Notifier) keepFD(name string, fd int) error {
	return n.send(fd, "FDSTORE=1", "FDNAME="+name, "FDPOLL=0")
}

// forgetFD makes the service manager close the descriptors of that name.
func (n *Notifier) forgetFD(name string) error {
	return n.send(-1, "FDSTOREREMOVE=1", "FDNAME="+name)
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// sendFile sends a message with a file. It does not use File.Fd, which would make
// the open file blocking, also for all copies of a listening socket.
func (n *Notifier) sendFile(f *os.File, lines ...string) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	return errors.Join(raw.Control(func(fd uintptr) { sent = n.send(int(fd), lines...) }), sent)
}

// notifyPatience bounds how long a service manager that does not read may block
// the daemon.
const notifyPatience = 5 * time.Second

// send sends a message, with a descriptor unless fd is -1.
func (n *Notifier) send(fd int, lines ...string) error {
	if n == nil || n.socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	defer conn.Close()
	if err := conn.SetWriteDeadline(time.Now().Add(notifyPatience)); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	if err := sendWith(conn, strings.Join(lines, "\n"), fd); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}

func sendWith(conn *net.UnixConn, message string, fd int) error {
	if fd < 0 {
		_, err := conn.Write([]byte(message))
		return err
	}
	to, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	inner := to.Write(func(sock uintptr) (done bool) {
		err = unix.Sendmsg(int(sock), []byte(message), unix.UnixRights(fd), nil, 0)
		return err != unix.EAGAIN
	})
	return errors.Join(inner, err)
}
