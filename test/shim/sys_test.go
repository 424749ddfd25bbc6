package shim

import (
	"strconv"
	"syscall"
)

const sigterm = syscall.SIGTERM

func itoa(n int) string { return strconv.Itoa(n) }
