// SPDX-License-Identifier: Apache-2.0

package fuzz

import (
	"os"
	"testing"

	"holdfast/test/kit"
)

func TestMain(m *testing.M) {
	if os.Geteuid() == 0 {
		kit.Isolate(0)
	}
	kit.Main(m)
}
