// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"holdfast/internal/errs"
)

// Default ports of the API over TCP, as registered for Docker.
const (
	plainPort = "2375"
	tlsPort   = "2376"
)

// ListenOptions are the arguments of Listen.
type ListenOptions struct {
	// Addresses are unix://PATH, tcp://HOST:PORT and fd:// with a name, a
	// number or nothing after it.
	Addresses []string
	// Group owns the Unix sockets: a name or a number. If it is empty they belong
	// to root's group. If it does not exist on this host, that is an error if
	// GroupRequired is set, and a warning otherwise.
	Group         string
	GroupRequired bool
	// TLS configures TCP listeners. Nil means plain text, with a warning.
	TLS       *tls.Config
	Inherited *Inherited
	Log       *slog.Logger
}

// Listener is one listening socket of the API.
type Listener struct {
	net.Listener
	Address string // as configured
	// raw is the socket under TLS.
	raw rawListener
	// socket is the file of a Unix socket that this daemon or its predecessor
	// created.
	socket *socketFile
	// adopted: this process did not create the file.
	adopted bool
	pause   *pause
}

type rawListener interface {
	net.Listener
	File() (*os.File, error)
	SetDeadline(time.Time) error
}

// Shown returns the actual address, with the port that the kernel chose.
func (l *Listener) Shown() string {
	if l.socket != nil {
		return "unix://" + l.socket.path
	}
	return l.Addr().Network() + "://" + l.Addr().String()
}

// File returns a copy of the socket, for a successor.
func (l *Listener) File() (*os.File, error) { return l.raw.File() }

// Listeners are all sockets of the API.
type Listeners struct {
	list []*Listener
	// stored: the service manager has copies, so that connections wait for the next
	// start instead of being refused. handed: a successor has copies.
	stored, handed bool
	pause          pause
}

// All returns the listeners, in the order of the addresses.
func (ls *Listeners) All() []*Listener { return ls.list }

// Listen opens or takes over the sockets of all addresses. The Lock must be held:
// only then a socket file without a listener is known to be stale. After an error
// no socket stays open.
func Listen(ctx context.Context, o ListenOptions) (_ *Listeners, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	ls := &Listeners{}
	defer func() {
		if err != nil {
			ls.Close()
			ls.removeFiles(false)
		}
	}()
	for _, address := range o.Addresses {
		proto, rest, _ := strings.Cut(address, "://")
		var got []*Listener
		switch proto {
		case "unix":
			got, err = listenUnix(ctx, o, address, rest)
		case "tcp":
			got, err = listenTCP(ctx, o, address, rest)
		case "fd":
			got, err = listenUnits(o, address, rest)
		default:
			err = errdefs.ErrInvalidArgument.WithMessage("want unix://PATH, tcp://HOST:PORT or fd://")
		}
		for _, l := range got {
			l.pause = &ls.pause
		}
		ls.list = append(ls.list, got...)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", address, err)
		}
	}
	return ls, nil
}

// Store passes copies of the sockets to the service manager if it has a
// descriptor store, and removes those whose address is no longer configured.
func (ls *Listeners) Store(n *Notifier, in *Inherited) error {
	unclaimed := in.unclaimed()
	// systemd sets it since version 254 if the unit has FileDescriptorStoreMax=.
	if max := os.Getenv("FDSTORE"); max == "" || max == "0" {
		return nil
	}
	var errs []error
	for _, name := range unclaimed {
		errs = append(errs, n.forgetFD(name))
	}
	for _, l := range ls.list {
		if strings.HasPrefix(l.Address, "fd://") {
			continue // systemd holds the socket of its socket unit itself
		}
		f, err := l.File()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, n.storeFD(storeName(l.Address), f))
		f.Close()
	}
	err := errors.Join(errs...)
	ls.stored = err == nil
	return err
}

// Remove removes the socket files at a clean stop. Sockets stay that the service
// manager or a successor still listens on.
func (ls *Listeners) Remove() {
	if !ls.stored && !ls.handed {
		ls.removeFiles(true)
	}
}

// removeFiles removes the socket files: all of them, or only those that this
// process created.
func (ls *Listeners) removeFiles(all bool) {
	for _, l := range ls.list {
		if l.socket != nil && (all || !l.adopted) {
			l.socket.remove()
		}
	}
}

// Socket is a listening socket that is passed to another daemon.
type Socket struct {
	Address string // as configured
	File    *os.File
}

// HandOver returns copies of all sockets, to be sent to a successor. From then on
// Remove leaves the socket files alone, until TakeBack.
func (ls *Listeners) HandOver() ([]Socket, error) {
	var out []Socket
	for _, l := range ls.list {
		f, err := l.File()
		if err != nil {
			for _, s := range out {
				s.File.Close()
			}
			return nil, fmt.Errorf("hand over %s: %w", l.Address, err)
		}
		out = append(out, Socket{l.Address, f})
	}
	ls.handed = true
	return out, nil
}

// Keep makes Remove leave the socket files alone, because they still belong to
// another daemon.
func (ls *Listeners) Keep() { ls.handed = true }

// TakeBack makes the socket files this daemon's own: a successor has failed, or
// this daemon has taken over.
func (ls *Listeners) TakeBack() { ls.handed = false }

func listenTCP(ctx context.Context, o ListenOptions, address, rest string) ([]*Listener, error) {
	hostport := rest
	port := plainPort
	if o.TLS != nil {
		port = tlsPort
	}
	if _, _, err := net.SplitHostPort(hostport); err != nil {
		hostport = net.JoinHostPort(strings.Trim(hostport, "[]"), port)
	}
	host, p, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	if p == "" {
		p = port
	}
	if host == "" {
		host = "127.0.0.1" // as dockerd reads tcp://:2375
	}
	hostport = net.JoinHostPort(host, p)

	var raw *net.TCPListener
	if f := o.Inherited.claim(address); f != nil {
		l, err := net.FileListener(f)
		f.Close()
		if err == nil {
			raw, _ = l.(*net.TCPListener)
			if raw == nil {
				l.Close()
			}
		}
	}
	if raw == nil {
		// Go enables keep-alive by default, and it stays on: a client that vanished
		// must not hold its log stream for ever.
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", hostport)
		if err != nil {
			return nil, err
		}
		raw = l.(*net.TCPListener)
	}
	if o.TLS == nil {
		warnPlain(o.Log, raw.Addr())
	} else if o.TLS.ClientAuth != tls.RequireAndVerifyClientCert {
		o.Log.Warn("clients of the API over TCP are not verified: whoever reaches the port has root on this host; use --tlsverify", "address", raw.Addr().String())
	}
	return []*Listener{wrap(o, address, raw, nil)}, nil
}

func warnPlain(log *slog.Logger, addr net.Addr) {
	ap, err := netip.ParseAddrPort(addr.String())
	if err == nil && ap.Addr().IsLoopback() {
		log.Warn("the API is served over TCP without TLS: every process and user of this host that can open a connection has root; use the unix socket, or --tlsverify", "address", "http://"+addr.String())
		return
	}
	log.Warn("[SECURITY] the API is served to the network without TLS: whoever reaches the port has root on this host; use --tlsverify", "address", "http://"+addr.String())
}

// wrap adds TLS to a TCP listener if it is configured.
func wrap(o ListenOptions, address string, raw rawListener, s *socketFile) *Listener {
	l := &Listener{Listener: raw, Address: address, raw: raw, socket: s}
	if _, isTCP := raw.(*net.TCPListener); isTCP && o.TLS != nil {
		l.Listener = tls.NewListener(raw, o.TLS)
	}
	return l
}

// listenUnits takes the sockets of systemd's socket units: all of them, or the
// one with a descriptor's number or name.
func listenUnits(o ListenOptions, address, which string) ([]*Listener, error) {
	if handed := o.Inherited.claimAll(address); len(handed) > 0 {
		return wrapUnits(o, address, handed)
	}
	if o.Inherited == nil || len(o.Inherited.units) == 0 {
		return nil, errdefs.ErrFailedPrecondition.WithMessage("no sockets found via socket activation: make sure the service was started by systemd")
	}
	var take, leave []*os.File
	for _, f := range o.Inherited.units {
		if which == "" || which == "*" || f.Name() == which || strconv.Itoa(int(f.Fd())) == which {
			take = append(take, f)
		} else {
			leave = append(leave, f)
		}
	}
	o.Inherited.units = leave
	if len(take) == 0 {
		return nil, errs.NotFound("failed to find systemd activated sockets: %q", which)
	}
	return wrapUnits(o, address, take)
}

func wrapUnits(o ListenOptions, address string, take []*os.File) (out []*Listener, err error) {
	for _, f := range take {
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return out, fmt.Errorf("socket %s of systemd: %w", f.Name(), err)
		}
		raw, ok := l.(rawListener)
		if !ok {
			l.Close()
			return out, errs.Invalid("socket %s of systemd is not a stream socket", f.Name())
		}
		if _, tcp := raw.(*net.TCPListener); tcp && o.TLS == nil {
			warnPlain(o.Log, raw.Addr())
		}
		if u, ok := raw.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false)
		}
		out = append(out, wrap(o, address, raw, nil))
	}
	return out, nil
}
