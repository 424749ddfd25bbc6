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

// Notifier tells the service manager of the daemon's life, by the protocol of
// sd_notify(3). Without a NOTIFY_SOCKET it says nothing.
type Notifier struct {
	socket string
	// watchdog is within which time the service manager wants to hear something;
	// 0 is never.
	watchdog time.Duration
}

// NewNotifier takes NOTIFY_SOCKET out of the environment, so that no child
// speaks in the daemon's name.
func NewNotifier() *Notifier {
	n := &Notifier{socket: os.Getenv("NOTIFY_SOCKET")}
	if usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64); err == nil && usec > 0 {
		// WATCHDOG_PID is not looked at: a daemon has no children that it is for,
		// and a successor has its predecessor's.
		n.watchdog = time.Duration(usec) * time.Microsecond
	}
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		os.Unsetenv(name)
	}
	return n
}

// Watch tells the service manager that this process lives, as often as its unit
// asks for by WatchdogSec=, until the context ends.
func (n *Notifier) Watch(ctx context.Context) {
	if n.watchdog == 0 {
		return
	}
	// Half of the time, as sd_watchdog_enabled(3) advises.
	tick := time.NewTicker(n.watchdog / 2)
	defer tick.Stop()
	for {
		_ = n.send(-1, "WATCHDOG=1") // what gets lost is followed by the next
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Ready says that the daemon serves, after a start or a reload.
func (n *Notifier) Ready(status string) error {
	return n.send(-1, "READY=1", fmt.Sprintf("MAINPID=%d", os.Getpid()), "STATUS="+oneLine(status))
}

// Reloading says that a reload has begun. It carries the time that a unit of
// Type=notify-reload wants, to tell this reload from an earlier one.
func (n *Notifier) Reloading() error {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return fmt.Errorf("read the monotonic clock: %w", err)
	}
	return n.send(-1, "RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", ts.Nano()/1000))
}

// Successor says which process is the daemon from now on. Only words of the one
// that the service manager knows count, so it is the predecessor's to say.
func (n *Notifier) Successor(pid int) error {
	return n.send(-1, fmt.Sprintf("MAINPID=%d", pid))
}

// Stopping says that a stop has begun.
func (n *Notifier) Stopping() error { return n.send(-1, "STOPPING=1") }

// Status shows a line to people.
func (n *Notifier) Status(s string) error { return n.send(-1, "STATUS="+oneLine(s)) }

// storeFD gives the service manager a copy of a descriptor, which it passes to
// the next start.
func (n *Notifier) storeFD(name string, f *os.File) error {
	return n.sendFile(f, "FDSTORE=1", "FDNAME="+name)
}

// keepFD is storeFD for a descriptor that may come to its end, and is to be kept
// all the same.
func (n *Notifier) keepFD(name string, fd int) error {
	return n.send(fd, "FDSTORE=1", "FDNAME="+name, "FDPOLL=0")
}

// forgetFD makes it close the descriptors of that name.
func (n *Notifier) forgetFD(name string) error {
	return n.send(-1, "FDSTOREREMOVE=1", "FDNAME="+name)
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// sendFile sends a file along. File.Fd is avoided: it would make the open file
// block, and a listening socket shares that with the copies of it.
func (n *Notifier) sendFile(f *os.File, lines ...string) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	return errors.Join(raw.Control(func(fd uintptr) { sent = n.send(int(fd), lines...) }), sent)
}

// send sends a message, and a descriptor with it unless that is -1.
func (n *Notifier) send(fd int, lines ...string) error {
	if n == nil || n.socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	defer conn.Close()
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
