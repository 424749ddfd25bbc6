// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Image is a block device in memory with a given content.
type Image struct {
	device string
	loop   *os.File
}

// Load makes an image of size bytes.
func Load(c Content, size int64) (*Image, error) {
	fd, err := unix.MemfdCreate("disk", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "disk")
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	for i, piece := range c {
		if _, err := f.WriteAt(piece, i*chunk); err != nil {
			return nil, err
		}
	}
	loop, device, err := attach(fd)
	if err != nil {
		return nil, fmt.Errorf("load a disk: %w", err)
	}
	return &Image{device, loop}, nil
}

// Device is the path of the block device.
func (i *Image) Device() string { return i.device }

// Close gives the device up. It exists until its file system is unmounted.
func (i *Image) Close() error { return i.loop.Close() }

// Store writes the content of a disk of size bytes to a sparse file.
func (c Content) Store(path string, size int64) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(size); err != nil {
		return err
	}
	order := make([]int64, 0, len(c))
	for i := range c {
		order = append(order, i)
	}
	slices.Sort(order)
	for _, i := range order {
		if _, err := f.WriteAt(c[i], i*chunk); err != nil {
			return err
		}
	}
	return nil
}

// Read returns the content of the disk image at path, and its size in bytes.
func Read(path string) (Content, int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, 0, err
	}
	return sparse(data), int64(len(data)), nil
}
