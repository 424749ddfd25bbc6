package bridge

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// settle makes the kernel act at once on the link state of an interface of the
// thread's network namespace. It does so by itself too, but on a work queue
// that waits for others; until then a bridge's port drops what it gets, and a
// lost ARP request is repeated after a second. Asking for the state by ethtool
// is what makes the kernel look: linkwatch_sync_dev in net/core/link_watch.c.
// An error is none of ours: the work queue comes to it anyway.
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
