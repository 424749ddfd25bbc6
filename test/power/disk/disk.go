// SPDX-License-Identifier: Apache-2.0

// Package disk is a disk that remembers every request, for tests of what a loss
// of power leaves.
//
// A Recorder is a block device: a loop device over the only file of a FUSE file
// system, which this process serves. The file is opened for direct I/O, so each
// request of the block layer arrives as it was made: a write with its position,
// or a flush. The block layer makes a flush of the device out of fsync(2), of
// journal commits and of writes with "force unit access".
//
// A Log is the list of these requests. It is cut anywhere, and Log.Cut says what
// a disk may hold after the power was lost there: everything up to the last
// flush, and of each later write all, nothing, or some sectors. An Image is a
// loop device with such a content.
//
// Neither device has a mount or a name that has to be removed: both are gone when
// their last user is, also if this process is killed.
package disk

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Sector is the smallest part that a disk writes as a whole, in bytes.
const Sector = 512

// Recorder is a block device of which every request is recorded.
type Recorder struct {
	device string
	loop   *os.File
	server *fuse.Server
	served chan struct{}
	mount  int

	mu   sync.Mutex
	data []byte
	log  Log
	// failing is how many of a hundred writes and flushes fail.
	failing int
	failed  int // how many have failed
}

// Record starts a recorder whose first content is that of the disk image at path.
// The disk writes whole bytes as a whole, a multiple of Sector.
func Record(path string, whole int) (r *Recorder, err error) {
	r = &Recorder{served: make(chan struct{}), mount: -1}
	if r.data, err = os.ReadFile(path); err != nil {
		return nil, err
	}
	r.log.Base = sparse(r.data)
	r.log.Size, r.log.Whole = int64(len(r.data)), whole
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("record a disk: %w", err), r.Close())
		}
	}()
	fd, err := r.serve()
	if err != nil {
		return r, err
	}
	defer unix.Close(fd)
	r.loop, r.device, err = attach(fd)
	return r, err
}

// Device is the path of the block device.
func (r *Recorder) Device() string { return r.device }

// Position is the number of requests so far. All requests that were answered
// before the call are among them.
func (r *Recorder) Position() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.log.Requests)
}

// Fail makes so many of a hundred writes and flushes fail with EIO from now on. They
// are not recorded, and have no effect.
func (r *Recorder) Fail(percent int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failing = percent
}

// Failed is the number of requests that have failed.
func (r *Recorder) Failed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

// fails reports whether the next request fails. It is called with the lock held.
func (r *Recorder) fails() bool {
	if rand.IntN(100) >= r.failing {
		return false
	}
	r.failed++
	return true
}

// Log returns the requests so far. It is not changed by later ones.
func (r *Recorder) Log() *Log {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.log
	l.Requests = l.Requests[:len(l.Requests):len(l.Requests)]
	return &l
}

// Close gives the device up. It exists until its file system is unmounted, and
// its requests are answered until then; Close waits for that.
func (r *Recorder) Close() error {
	var errs []error
	if r.loop != nil {
		errs = append(errs, r.loop.Close())
	}
	if r.mount >= 0 {
		errs = append(errs, unix.Close(r.mount))
	}
	if r.server != nil {
		<-r.served
	}
	return errors.Join(errs...)
}

// serve makes the file system, which is mounted nowhere, and opens its file.
func (r *Recorder) serve() (fd int, err error) {
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse: %w", err)
	}
	if r.mount, err = mountNowhere(dev); err != nil {
		unix.Close(dev)
		return -1, err
	}
	r.server, err = fuse.NewServer(&device{RawFileSystem: fuse.NewDefaultRawFileSystem(), r: r}, fmt.Sprintf("/dev/fd/%d", dev), &fuse.MountOptions{
		MaxWrite: 1 << 20, DisableXAttrs: true, SingleThreaded: false,
	})
	if err != nil {
		return -1, err
	}
	go func() {
		r.server.Serve()
		close(r.served)
	}()
	// Not by package os, whose poller would ask the file system about the file.
	fd, err = unix.Openat(r.mount, fileName, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the file of the file system: %w", err)
	}
	return fd, nil
}

// mountNowhere creates a FUSE file system that dev serves, and returns its root.
func mountNowhere(dev int) (root int, err error) {
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	for _, o := range [][2]string{
		{"source", "recorder"}, {"fd", fmt.Sprint(dev)}, {"rootmode", "40000"}, {"user_id", "0"}, {"group_id", "0"},
	} {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return -1, fmt.Errorf("fsconfig %s: %w", o[0], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, os.NewSyscallError("fsconfig", err)
	}
	root, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	return root, os.NewSyscallError("fsmount", err)
}

// fileName is the name of the only file, and fileNode its inode.
const (
	fileName = "disk"
	fileNode = 2
)

// device is the file system: a directory with one file.
type device struct {
	fuse.RawFileSystem
	r *Recorder
}

func (d *device) String() string { return "recorder" }

func (d *device) attr(node uint64, out *fuse.Attr) {
	*out = fuse.Attr{Ino: node, Mode: fuse.S_IFDIR | 0o700, Nlink: 1, Blksize: 4096}
	if node == fileNode {
		out.Mode, out.Size = fuse.S_IFREG|0o600, uint64(len(d.r.data))
	}
}

// forever is how long the kernel may keep an answer, in seconds.
const forever = 1 << 30

func (d *device) Lookup(_ <-chan struct{}, _ *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if name != fileName {
		return fuse.ENOENT
	}
	out.NodeId, out.AttrValid, out.EntryValid = fileNode, forever, forever
	d.attr(fileNode, &out.Attr)
	return fuse.OK
}

func (d *device) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.AttrValid = forever
	d.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

// SetAttr is asked for times alone, which no one needs.
func (d *device) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.AttrValid = forever
	d.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

func (d *device) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_DIRECT_IO
	return fuse.OK
}

func (d *device) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

func (d *device) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	d.r.mu.Lock()
	defer d.r.mu.Unlock()
	size := uint64(len(d.r.data))
	from := min(in.Offset, size)
	n := copy(buf, d.r.data[from:min(from+uint64(in.Size), size)])
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (d *device) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	return uint32(len(data)), d.r.write(in.Offset, data)
}

func (d *device) Writev(_ <-chan struct{}, in *fuse.WriteIn, data [][]byte) (n uint32, _ fuse.Status) {
	var whole []byte
	for _, part := range data {
		whole = append(whole, part...)
	}
	return uint32(len(whole)), d.r.write(in.Offset, whole)
}

// Fallocate is how the loop device asks for zeros and discards.
func (d *device) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if in.Mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) == 0 {
		return fuse.Status(unix.EOPNOTSUPP)
	}
	return d.r.write(in.Offset, make([]byte, in.Length))
}

func (d *device) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status {
	d.r.mu.Lock()
	defer d.r.mu.Unlock()
	if d.r.fails() {
		return fuse.EIO
	}
	d.r.log.Requests = append(d.r.log.Requests, Request{})
	return fuse.OK
}

func (r *Recorder) write(at uint64, data []byte) fuse.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at > uint64(len(r.data)) || uint64(len(data)) > uint64(len(r.data))-at {
		return fuse.Status(unix.ENOSPC)
	}
	if r.fails() {
		return fuse.EIO
	}
	copy(r.data[at:], data)
	r.log.Requests = append(r.log.Requests, Request{At: int64(at), Data: append([]byte(nil), data...)})
	return fuse.OK
}
