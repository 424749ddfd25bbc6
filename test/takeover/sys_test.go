// SPDX-License-Identifier: Apache-2.0

package takeover

import (
	"context"
	"os"
	"syscall"
	"testing"
)

func sysStat(st os.FileInfo) uint64 { return st.Sys().(*syscall.Stat_t).Ino }

// contextOf returns a context that ends with the test at the latest.
func contextOf(t *testing.T) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return ctx, cancel
}
