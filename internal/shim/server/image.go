package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/logs/format"
	"holdfast/internal/shim/proto"
)

// imageSchema numbers the form of image. It grows when a shim of the release
// before could not go on with what it reads; fields may come without that.
const imageSchema = 1

// image is all that a shim holds, for the program that goes on in its process.
// Descriptors keep their numbers; -1 is none. What the run directory tells (the
// journal, the ledger) is not in it.
type image struct {
	Schema  int `json:"schema"`
	Program int `json:"program"` // the one before, to go back to

	Boot     *proto.Bootstrap `json:"boot"`
	State    proto.State      `json:"state"`
	OOMScore string           `json:"oomScore,omitempty"`
	Calls    uint64           `json:"calls"`
	Consoles uint64           `json:"consoles"`
	Delay    time.Duration    `json:"delay,omitempty"`
	Rows     uint             `json:"rows,omitempty"`
	Cols     uint             `json:"cols,omitempty"`
	Dropped  uint64           `json:"dropped,omitempty"`
	Log      []byte           `json:"log,omitempty"` // where there is no ledger

	Dir      int `json:"dir"`
	Lock     int `json:"lock"`
	Listener int `json:"listener"`

	Run     *runImage     `json:"run,omitempty"`
	Clients []clientImage `json:"clients,omitempty"`
	Execs   []execImage   `json:"execs,omitempty"`
	Left    []int         `json:"left,omitempty"` // streams of execs that have ended
	Ports   []int         `json:"ports,omitempty"`
	Flows   []flowImage   `json:"flows,omitempty"`
	Peers   [][]peerImage `json:"peers,omitempty"`
	Names   *namesImage   `json:"names,omitempty"`
	Conns   []connImage   `json:"conns,omitempty"`
	Stops   []stopImage   `json:"stops,omitempty"`
	Holds   []holdImage   `json:"holds,omitempty"`
	Follows []followImage `json:"follows,omitempty"`
	Asked   int           `json:"asked"` // the connection that asked for the upgrade
	Request uint64        `json:"request"`

	listener *listener // keeps it from being closed by the garbage collector
}

type processImage struct {
	Pid     int    `json:"pid"`
	Pidfd   int    `json:"pidfd"`
	Foreign bool   `json:"foreign,omitempty"`
	Start   uint64 `json:"start,omitempty"`
	Over    bool   `json:"over,omitempty"`
	Status  uint32 `json:"status,omitempty"`
	Lost    bool   `json:"lost,omitempty"`
}

type runImage struct {
	Process processImage `json:"process"`
	Started time.Time    `json:"started"`
	Master  int          `json:"master"`
	Stdin   int          `json:"stdin"`
	Stdout  int          `json:"stdout"`
	Stderr  int          `json:"stderr"`
}

type clientImage struct {
	Socket  int          `json:"socket"`
	Asked   proto.Attach `json:"asked"`
	Live    bool         `json:"live"` // of the present run
	Sending []byte       `json:"sending,omitempty"`
	Typed   []byte       `json:"typed,omitempty"`
	Keys    int          `json:"keys,omitempty"` // of the detach keys typed so far
	Mute    bool         `json:"mute,omitempty"`
	Gone    bool         `json:"gone,omitempty"` // by its detach keys
	Memory  []byte       `json:"memory,omitempty"`
	File    int          `json:"file"`
	Read    int64        `json:"read,omitempty"`
	Written int64        `json:"written,omitempty"`
	Closed  bool         `json:"closed,omitempty"`
}

type execImage struct {
	Create  proto.ExecCreate `json:"create"`
	State   proto.ExecState  `json:"state"`
	Rows    uint             `json:"rows,omitempty"`
	Cols    uint             `json:"cols,omitempty"`
	Active  bool             `json:"active,omitempty"` // all below
	Process processImage     `json:"process"`
	Socket  int              `json:"socket"`
	Stdin   int              `json:"stdin"`
	Stdout  int              `json:"stdout"`
	Stderr  int              `json:"stderr"`
	Master  int              `json:"master"`
	Typed   []byte           `json:"typed,omitempty"`
	Keys    int              `json:"keys,omitempty"`
	Mute    bool             `json:"mute,omitempty"`
	Gone    bool             `json:"gone,omitempty"`
	Rest    []byte           `json:"rest,omitempty"` // of a frame, then those that wait
	Held    [][]byte         `json:"held,omitempty"`
}

type flowImage struct {
	Client int       `json:"client"`
	Server int       `json:"server"`
	Target string    `json:"target"`
	Up     halfImage `json:"up"`
	Down   halfImage `json:"down"`
}

type halfImage struct {
	Left  []byte `json:"left,omitempty"`
	Ended bool   `json:"ended,omitempty"`
	Over  bool   `json:"over,omitempty"`
}

type peerImage struct {
	From   string `json:"from"`
	Socket int    `json:"socket"`
}

type namesImage struct {
	View string `json:"view"`
	UDP  int    `json:"udp"`
	TCP  int    `json:"tcp"`
}

type connImage struct {
	Socket     int              `json:"socket"`
	Daemon     bool             `json:"daemon,omitempty"`
	Lender     bool             `json:"lender,omitempty"` // the container is frozen for it
	Subscribed bool             `json:"subscribed,omitempty"`
	Closing    bool             `json:"closing,omitempty"`
	Carried    proto.Carried    `json:"carried"`
	Queue      []*proto.Message `json:"queue,omitempty"`
	Files      []int            `json:"files,omitempty"` // one for each of Queue
}

type stopImage struct {
	Conn     int       `json:"conn"`
	Request  uint64    `json:"request"`
	Signal   int       `json:"signal"`
	Timeout  int       `json:"timeout"`
	Signaled bool      `json:"signaled,omitempty"`
	Deadline time.Time `json:"deadline,omitzero"`
}

type holdImage struct {
	Socket    int       `json:"socket"`
	Lease     int       `json:"lease"`
	Condition string    `json:"condition"`
	Last      time.Time `json:"last,omitzero"`
	Later     bool      `json:"later,omitempty"`
	Said      []byte    `json:"said,omitempty"`
	Heard     bool      `json:"heard,omitempty"`
}

type followImage struct {
	Socket int          `json:"socket"`
	Asked  proto.Follow `json:"asked"` // from where it is
	Out    []byte       `json:"out,omitempty"`
	Files  []int        `json:"files"`
	Size   int64        `json:"size"`
	Over   bool         `json:"over,omitempty"`
	Lost   bool         `json:"lost,omitempty"`
}

// descriptors are all of the image's, to be changed in place.
func (img *image) descriptors() []*int {
	list := []*int{&img.Program, &img.Dir, &img.Lock, &img.Listener}
	if r := img.Run; r != nil {
		list = append(list, &r.Process.Pidfd, &r.Master, &r.Stdin, &r.Stdout, &r.Stderr)
	}
	for i := range img.Clients {
		list = append(list, &img.Clients[i].Socket, &img.Clients[i].File)
	}
	for i := range img.Execs {
		x := &img.Execs[i]
		list = append(list, &x.Process.Pidfd, &x.Socket, &x.Stdin, &x.Stdout, &x.Stderr, &x.Master)
	}
	for _, each := range [][]int{img.Left, img.Ports} {
		for i := range each {
			list = append(list, &each[i])
		}
	}
	for i := range img.Flows {
		list = append(list, &img.Flows[i].Client, &img.Flows[i].Server)
	}
	for _, each := range img.Peers {
		for i := range each {
			list = append(list, &each[i].Socket)
		}
	}
	if n := img.Names; n != nil {
		list = append(list, &n.UDP, &n.TCP)
	}
	for i := range img.Holds {
		list = append(list, &img.Holds[i].Socket, &img.Holds[i].Lease)
	}
	for i := range img.Follows {
		list = append(list, &img.Follows[i].Socket)
		for j := range img.Follows[i].Files {
			list = append(list, &img.Follows[i].Files[j])
		}
	}
	for i := range img.Conns {
		c := &img.Conns[i]
		list = append(list, &c.Socket)
		for _, each := range [][]int{c.Carried.FDs, c.Files} {
			for j := range each {
				list = append(list, &each[j])
			}
		}
	}
	return list
}

// store puts the image into a memfd.
func (img *image) store() (int, error) {
	raw, err := json.Marshal(img)
	if err != nil {
		return -1, err
	}
	fd, err := unix.MemfdCreate("shim image", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("memfd_create", err)
	}
	for off := 0; off < len(raw); {
		n, err := unix.Pwrite(fd, raw[off:], int64(off))
		if err != nil && err != unix.EINTR {
			unix.Close(fd)
			return -1, os.NewSyscallError("write image", err)
		}
		off += max(n, 0)
	}
	return fd, nil
}

// loadImage reads the image and closes it. Its descriptors are the process's
// alone from then on.
func loadImage(fd int) (*image, error) {
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat image", err)
	}
	raw := make([]byte, st.Size)
	for off := 0; off < len(raw); {
		n, err := unix.Pread(fd, raw[off:], int64(off))
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return nil, fmt.Errorf("read image: %w", errors.Join(err, fmt.Errorf("%d of %d bytes", off, len(raw))))
		}
		off += n
	}
	img := &image{Program: -1}
	if err := json.Unmarshal(raw, img); err != nil {
		return nil, fmt.Errorf("read image: %w", err)
	}
	for _, n := range img.descriptors() {
		if *n >= 0 {
			unix.CloseOnExec(*n)
		}
	}
	return img, nil
}

// number is a file's descriptor; -1 when there is none or it is closed.
func number(f *os.File) int {
	if f == nil {
		return -1
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return -1
	}
	fd := -1
	raw.Control(func(n uintptr) { fd = int(n) })
	return fd
}

// file makes a file of a descriptor that was made non-blocking before; nil for
// none.
func file(fd int, name string) *os.File {
	if fd < 0 {
		return nil
	}
	return os.NewFile(uintptr(fd), name)
}

func (p *process) image() processImage {
	return processImage{Pid: p.pid, Pidfd: number(p.pidfd), Foreign: p.foreign, Start: p.start,
		Over: p.over, Status: uint32(p.status), Lost: p.lost}
}

// process watches it again.
func (i processImage) process(r *reaper) (*process, error) {
	if i.Over || i.Pidfd < 0 {
		p := &process{pid: i.Pid, pidfd: file(i.Pidfd, "process"), exited: make(chan struct{}), foreign: i.Foreign,
			start: i.Start, status: syscall.WaitStatus(i.Status), lost: i.Lost, over: true}
		close(p.exited)
		return p, nil
	}
	if i.Foreign {
		return foreign(i.Pid, i.Start, i.Pidfd), nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.follow(i.Pid, i.Pidfd)
}

// capture takes everything down, with the gate shut and motion locked.
func (s *Shim) capture(asked *conn, request uint64) (*image, error) {
	program, err := unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		program = -1 // there is no way back, then
	}
	img := &image{
		Schema: imageSchema, Program: program, OOMScore: s.runtime.oomScore,
		Calls: s.runtime.calls.Load(), Consoles: s.consoles.Load(), Delay: s.delay,
		Dir: s.dirfd, Lock: s.locked, Listener: number(s.server.listener.f), Request: request,
	}
	s.mu.Lock()
	boot := *s.boot
	boot.Restart, boot.Adopt = s.policy, nil
	img.Boot, img.Rows, img.Cols = &boot, s.rows, s.cols
	current := s.current
	if s.names != nil {
		img.Names = &namesImage{View: s.namesView, UDP: number(s.namesFiles[0]), TCP: number(s.namesFiles[1])}
	}
	stops := make([]*stopping, 0, len(s.stops))
	for x := range s.stops {
		stops = append(stops, x)
	}
	s.mu.Unlock()
	s.rec.mu.Lock()
	boot.Attributes = s.rec.attrs
	if s.rec.dropped != nil {
		img.Dropped = s.rec.dropped()
	}
	img.State = s.rec.st
	subscribed := make(map[*conn]bool, len(s.rec.subs))
	for c := range s.rec.subs {
		subscribed[c] = true
	}
	s.rec.mu.Unlock()

	s.captureOutput(img, current)
	s.captureExecs(img)
	s.ports.capture(img)
	s.holds.capture(img)
	s.server.capture(img, asked, subscribed, stops)
	return img, nil
}

func (s *Shim) captureOutput(img *image, current *run) {
	o := s.out
	o.mu.Lock()
	defer o.mu.Unlock()
	img.Log = o.log.AppendState(nil)
	if o.ledger != nil {
		o.ledger.shorten()
	}
	if current != nil {
		r := &runImage{Process: current.proc.image(), Started: current.started, Master: number(current.io.master), Stdin: -1, Stdout: -1, Stderr: -1}
		if !o.in.over {
			r.Stdin = number(current.io.stdin)
		}
		for _, p := range current.io.pumps {
			switch {
			case p.terminal:
			case p.src == format.Stdout:
				r.Stdout = number(p.f)
			default:
				r.Stderr = number(p.f)
			}
		}
		img.Run = r
	}
	for f := range o.followers {
		f.mu.Lock()
		i := followImage{Socket: number(f.sock.f), Asked: f.asked, Out: f.out, Size: f.size, Over: f.over, Lost: f.lost}
		i.Asked.Within = f.enc.Within
		for _, file := range f.files {
			i.Files = append(i.Files, number(file))
		}
		f.mu.Unlock()
		if i.Socket >= 0 && len(i.Files) > 0 {
			img.Follows = append(img.Follows, i)
		}
	}
	for c := range o.all {
		_, live := o.clients[c]
		i := clientImage{Socket: number(c.sock.f), Asked: c.asked, Live: live, Sending: c.sending, Typed: c.typed,
			Keys: c.esc.pos, Mute: c.mute, Gone: c.left}
		if i.Socket < 0 {
			continue
		}
		b := c.queue
		b.mu.Lock()
		i.Memory, i.File, i.Read, i.Written, i.Closed = b.mem, number(b.file), b.rd, b.wr, b.closed
		b.mu.Unlock()
		img.Clients = append(img.Clients, i)
	}
}

func (s *Shim) captureExecs(img *image) {
	s.execs.mu.Lock()
	defer s.execs.mu.Unlock()
	for _, x := range s.execs.list {
		i := execImage{Create: x.create, State: x.state, Rows: x.rows, Cols: x.cols, Socket: -1, Stdin: -1, Stdout: -1, Stderr: -1, Master: -1}
		i.Process.Pidfd = -1
		if x.io != nil {
			i.Active, i.Process = true, x.proc.image()
			if x.out.sock != nil && !x.out.gone {
				i.Socket = number(x.out.sock.f)
			}
			if x.create.Tty {
				i.Master = number(x.io.stdout)
			} else {
				i.Stdin, i.Stdout, i.Stderr = number(x.io.stdin), number(x.io.stdout), number(x.io.stderr)
			}
			i.Typed, i.Keys, i.Mute, i.Gone, i.Rest = x.io.typed, x.io.esc.pos, x.io.mute, x.io.left, x.out.rest
			for _, rd := range x.readers {
				i.Held = append(i.Held, rd.held)
			}
		}
		img.Execs = append(img.Execs, i)
	}
	for f := range s.execs.left {
		img.Left = append(img.Left, number(f))
	}
}

func (hs *holds) capture(img *image) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	for h := range hs.all {
		i := holdImage{Socket: number(h.sock.f), Lease: number(h.lease), Condition: h.condition, Last: h.last, Later: h.later,
			Said: h.said, Heard: h.heard}
		if i.Socket >= 0 && i.Lease >= 0 {
			img.Holds = append(img.Holds, i)
		}
	}
}

func (p *hostPorts) capture(img *image) {
	img.Ports = p.fds
	p.flows.Lock()
	defer p.flows.Unlock()
	for w := range p.forwards {
		i := flowImage{Client: number(w.client), Server: number(w.server), Target: w.target.String(), Up: w.up.image(), Down: w.down.image()}
		if i.Client >= 0 {
			img.Flows = append(img.Flows, i)
		}
	}
	for _, u := range p.udp {
		var peers []peerImage
		u.mu.Lock()
		for from, f := range u.peers {
			peers = append(peers, peerImage{From: from.String(), Socket: number(f)})
		}
		u.mu.Unlock()
		img.Peers = append(img.Peers, peers)
	}
}

func (h *half) image() halfImage { return halfImage{Left: h.left, Ended: h.ended, Over: h.over} }

func (i halfImage) half() half { return half{left: i.Left, ended: i.Ended, over: i.Over} }

func (s *server) capture(img *image, asked *conn, subscribed map[*conn]bool, stops []*stopping) {
	index := map[*conn]int{}
	img.Asked = -1
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.mu.Lock()
		i := connImage{Socket: number(c.frames.File()), Daemon: c.daemon.Load(), Lender: s.shim.lender.Load() == c, Subscribed: subscribed[c], Closing: c.closing}
		carried, begun := c.frames.Carry()
		i.Carried = carried
		queue := c.queue
		if c.sending != nil && !begun {
			queue = append([]outgoing{*c.sending}, queue...)
		}
		for _, m := range queue {
			i.Queue, i.Files = append(i.Queue, m.Message), append(i.Files, m.fd)
		}
		c.mu.Unlock()
		if i.Socket < 0 {
			continue
		}
		index[c] = len(img.Conns)
		if c == asked {
			img.Asked = len(img.Conns)
		}
		img.Conns = append(img.Conns, i)
	}
	for _, x := range stops {
		at, ok := index[x.conn]
		if !ok {
			at = -1 // its caller has gone; it is carried out all the same
		}
		img.Stops = append(img.Stops, stopImage{Conn: at, Request: x.id, Signal: int(x.signal), Timeout: x.timeout,
			Signaled: x.signaled, Deadline: x.deadline})
	}
}

// shim makes the shim of an image, without letting anything move. Nothing that
// others could see has changed when it fails. back: it is the program that made
// the image, as another one did not take it.
func (img *image) shim(release string, back bool) (*Shim, error) {
	if img.Schema < 1 || img.Schema > imageSchema || img.Boot == nil {
		return nil, fmt.Errorf("the image has number %d, this release goes up to %d", img.Schema, imageSchema)
	}
	b := img.Boot
	reaper := newReaper()
	runtime, err := newRuntime(b, reaper)
	if err != nil {
		if !back {
			return nil, err
		}
		logf("%v", err) // it was there once, and may be again
	}
	runtime.oomScore = img.OOMScore
	runtime.calls.Store(img.Calls)
	rec, err := resumeRecord(b, img.State)
	if err != nil {
		return nil, err
	}
	s := newShim(b, release, rec, reaper, runtime)
	s.dirfd, s.locked, s.rows, s.cols, s.delay = img.Dir, img.Lock, img.Rows, img.Cols, img.Delay
	s.consoles.Store(img.Consoles)
	s.starting.Store(true)
	if err := s.out.openLog(b.Log, b.RunDir, true); err != nil {
		return nil, err
	}
	if s.out.ledger == nil {
		if err := s.out.log.SetState(img.Log); err != nil {
			logf("a line that was begun is lost: %v", err)
		}
	}
	s.countDropped(img.Dropped)
	if s.server.listener, err = newListener(img.Listener); err != nil {
		return nil, err
	}
	img.listener = s.server.listener
	return s, nil
}

// begin lets everything move again.
func (img *image) begin(s *Shim, refused string) {
	b := s.boot
	var err error
	if s.ports, err = servePorts(b.Ports, img.Ports); err != nil {
		logf("ports: %v", err)
		s.ports = newHostPorts(img.Ports)
	}
	img.beginPorts(s.ports)
	img.beginRun(s)
	img.beginExecs(s)
	img.beginHolds(s)
	if n := img.Names; n != nil && n.UDP >= 0 && n.TCP >= 0 {
		s.serveNames(n.View, n.UDP, n.TCP)
	}
	img.beginConns(s, refused)
	go s.server.acceptAll()
	if img.Program >= 0 {
		unix.Close(img.Program)
	}
}

func (img *image) beginPorts(p *hostPorts) {
	for _, i := range img.Flows {
		w := &forward{client: file(i.Client, "client"), server: file(i.Server, "container"), up: i.Up.half(), down: i.Down.half()}
		w.target, _ = netip.ParseAddrPort(i.Target)
		p.room.Add(-2)
		p.mark(w, true)
		go p.forwardTCP(w)
	}
	for n, peers := range img.Peers {
		for _, i := range peers {
			from, err := netip.ParseAddrPort(i.From)
			if n >= len(p.udp) || err != nil || i.Socket < 0 {
				closeAll([]int{i.Socket})
				continue
			}
			p.udp[n].take(from, i.Socket)
		}
	}
}

func (img *image) beginRun(s *Shim) {
	b := s.boot
	if !bundlePrivatePids(b.Bundle + "/config.json") {
		s.reaper.sweepOrphans()
	}
	var r *run
	if i := img.Run; i != nil {
		proc, err := i.Process.process(s.reaper)
		if err != nil {
			logf("process %d: %v", i.Process.Pid, err)
			proc = foreign(i.Process.Pid, img.State.PidStart, -1)
		}
		r = &run{proc: proc, io: s.out.resume(i), started: i.Started}
		s.current = r
	}
	// Clients first: no byte may pass them by.
	for _, i := range img.Clients {
		s.beginClient(i)
	}
	for _, i := range img.Follows {
		s.beginFollower(i)
	}
	if r != nil {
		r.io.run(b)
		if b.Health != nil && img.State.Health != nil {
			go s.watchHealth(*b.Health, r.started, r.proc.exited)
		}
	}
	go s.supervise(r, img.Delay)
}

func (s *Shim) beginClient(i clientImage) {
	sock, err := newSocket(i.Socket, &s.server.progress)
	if err != nil {
		logf("client: %v", err)
		return
	}
	c := &client{sock: sock, asked: i.Asked, queue: newBacklog(s.boot.DataDir), done: make(chan struct{}),
		sending: i.Sending, typed: i.Typed, esc: escape{keys: i.Asked.DetachKeys, pos: i.Keys}, mute: i.Mute, left: i.Gone}
	b := c.queue
	b.mem, b.file, b.rd, b.wr, b.closed = i.Memory, file(i.File, "backlog"), i.Read, i.Written, i.Closed
	in := s.out.join(c, i.Live)
	s.server.linger(c.done)
	go s.listen(c, in)
}

func (s *Shim) beginFollower(i followImage) {
	sock, err := newSocket(i.Socket, &s.server.progress)
	if err != nil {
		logf("follow log: %v", err)
		closeAll(i.Files)
		return
	}
	f := newFollower(i.Asked, sock, s.boot.Log.Driver)
	f.out, f.size, f.over, f.lost = i.Out, i.Size, i.Over, i.Lost
	for _, fd := range i.Files {
		f.files = append(f.files, file(fd, "log"))
	}
	s.out.mu.Lock()
	s.out.track(f, s.followBehind())
	s.out.mu.Unlock()
	s.serveFollower(f)
}

func (img *image) beginExecs(s *Shim) {
	for _, i := range img.Execs {
		x := &session{create: i.Create, state: i.State, rows: i.Rows, cols: i.Cols, ended: make(chan struct{})}
		s.execs.list = append(s.execs.list, x)
		if !i.Active {
			if i.State.Started {
				close(x.ended)
			}
			continue
		}
		proc, err := i.Process.process(s.reaper)
		if err != nil {
			logf("exec %s: %v", i.Create.Exec, err)
			proc = &process{pid: i.Process.Pid, exited: make(chan struct{}), status: unknownStatus, lost: true, over: true}
			close(proc.exited)
		}
		x.proc = proc
		x.io = &execIO{child: noStdio, stdin: file(i.Stdin, "pipe"), stdout: file(i.Stdout, "pipe"), stderr: file(i.Stderr, "pipe"),
			typed: i.Typed, esc: escape{pos: i.Keys}, mute: i.Mute, left: i.Gone}
		if i.Create.Tty {
			x.master = file(i.Master, "terminal")
			x.io.stdin, x.io.stdout = x.master, x.master
			x.io.esc.keys = i.Create.DetachKeys
		}
		x.out = &execWriter{raw: i.Create.Tty, rest: i.Rest}
		if i.Socket >= 0 {
			if x.out.sock, err = newSocket(i.Socket, &s.server.progress); err != nil {
				logf("exec %s: client: %v", i.Create.Exec, err)
			}
		}
		x.listen()
		for n, rd := range x.readers {
			if n < len(i.Held) {
				rd.held = i.Held[n]
			}
		}
		s.followExec(x)
	}
	s.execs.mu.Lock()
	defer s.execs.mu.Unlock()
	for _, fd := range img.Left {
		if fd >= 0 {
			s.execs.discard(&execReader{f: file(fd, "pipe")})
		}
	}
}

func (img *image) beginHolds(s *Shim) {
	for _, i := range img.Holds {
		sock, err := newSocket(i.Socket, &s.server.progress)
		if err != nil {
			logf("client: %v", err)
			closeAll([]int{i.Lease})
			continue
		}
		h := &hold{sock: sock, lease: file(i.Lease, "lease"), done: make(chan struct{}), later: i.Later,
			condition: i.Condition, last: i.Last, said: i.Said, heard: i.Heard}
		s.holds.mu.Lock()
		if s.holds.all == nil {
			s.holds.all = map[*hold]struct{}{}
		}
		s.holds.all[h] = struct{}{}
		s.holds.mu.Unlock()
		s.serveHold(h)
	}
}

func (img *image) beginConns(s *Shim, refused string) {
	conns := make([]*conn, len(img.Conns))
	for n, i := range img.Conns {
		frames, err := proto.NewConn(i.Socket)
		if err != nil {
			logf("connection: %v", err)
			unix.Close(i.Socket)
			continue
		}
		frames.Restore(i.Carried)
		c := &conn{srv: s.server, frames: frames, done: make(chan struct{}), wake: make(chan struct{}, 1), closing: i.Closing}
		c.daemon.Store(i.Daemon)
		if i.Lender {
			s.lender.Store(c)
		}
		for j, m := range i.Queue {
			fd := -1
			if j < len(i.Files) {
				fd = i.Files[j]
			}
			c.queue = append(c.queue, outgoing{Message: m, fd: fd})
		}
		if i.Subscribed {
			s.rec.subs[c] = struct{}{}
		}
		conns[n] = c
	}
	for _, i := range img.Stops {
		x := &stopping{id: i.Request, signal: syscall.Signal(i.Signal), timeout: i.Timeout, signaled: i.Signaled, deadline: i.Deadline}
		if i.Conn >= 0 && i.Conn < len(conns) {
			x.conn = conns[i.Conn]
		}
		if x.conn != nil {
			x.conn.calls++
		}
		s.stops[x] = struct{}{}
		go s.carryOut(x)
	}
	if img.Asked >= 0 && img.Asked < len(conns) && conns[img.Asked] != nil {
		c := conns[img.Asked]
		if refused != "" {
			c.answer(img.Request, nil, invalid("upgrade: the other release did not take over: %s", refused))
		} else {
			c.answer(img.Request, s.hello(), nil)
		}
	}
	for _, c := range conns {
		if c != nil {
			s.server.begin(c)
		}
	}
}
