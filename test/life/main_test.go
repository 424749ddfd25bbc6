// SPDX-License-Identifier: Apache-2.0

// Package life tests the life of containers: how they start and end, which
// requests end them, and which events and states are reported. Expected values
// come from a dockerd that runs the same steps, where Docker has the behaviour.
// It needs root.
package life

import (
	"testing"

	"holdfast/test/kit"
)

func TestMain(m *testing.M) { kit.Main(m) }

const image = "busybox:test"
