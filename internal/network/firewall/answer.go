package firewall

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// firstError reads struct nlmsghdr by struct nlmsghdr and returns the first
// error that a struct nlmsgerr among them carries.
func firstError(b []byte) error {
	for len(b) >= unix.SizeofNlMsghdr {
		length := int(binary.NativeEndian.Uint32(b))
		if length < unix.SizeofNlMsghdr || length > len(b) {
			return fmt.Errorf("netfilter: an answer of %d bytes in %d", length, len(b))
		}
		body := b[unix.SizeofNlMsghdr:length]
		if binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR && len(body) >= 4 {
			if errno := -int32(binary.NativeEndian.Uint32(body)); errno != 0 {
				return unix.Errno(errno)
			}
		}
		b = b[min((length+3)&^3, len(b)):]
	}
	return nil
}
