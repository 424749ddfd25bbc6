// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"strconv"
	"syscall"

	"holdfast/internal/shim/client"
	"holdfast/internal/shim/proto"
)

const sigterm = syscall.SIGTERM

func itoa(n int) string { return strconv.Itoa(n) }

func readState(b *box) (proto.State, error) { return client.ReadState(b.boot.RunDir) }
