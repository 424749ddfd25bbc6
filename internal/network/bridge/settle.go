// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Settle makes the kernel apply the link states of interfaces of the thread's network
// namespace at once.
func Settle(names ...string) {
	for _, name := range names {
		settle(name)
	}
}

// settle makes the kernel apply the link state of an interface of the thread's
// network namespace at once. Otherwise it does so on a work queue, some time
// later. Until then a bridge's port drops the frames that it gets, and a lost ARP
// request is only repeated after a second. Reading the state by ethtool triggers
// it: linkwatch_sync_dev in net/core/link_watch.c. Errors are ignored, because
// the work queue does it anyway.
func settle(name string) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	value := struct{ cmd, data uint32 }{cmd: unix.ETHTOOL_GLINK}
	var ifreq struct { // struct ifreq with ifr_data
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [24 - unsafe.Sizeof(uintptr(0))]byte
	}
	copy(ifreq.name[:unix.IFNAMSIZ-1], name)
	ifreq.data = unsafe.Pointer(&value)
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq)))
	runtime.KeepAlive(&value)
}
