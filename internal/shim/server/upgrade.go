package server

import "holdfast/internal/shim/proto"

// upgrade begins to go on as another binary. The answer comes from that one.
func (s *Shim) upgrade(c *conn, id uint64, req proto.Upgrade) error {
	return protoError(proto.KindUnimplemented, "this shim can't be upgraded in place yet")
}
