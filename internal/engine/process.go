// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"holdfast/internal/shim/proto"
)

// alive reports whether the process of a record lives: the same pid, start time and
// boot, and not a zombie.
func alive(rec proto.State) bool {
	status, there := processOf(rec)
	return there && status != "Z" && status != "X"
}

// present reports whether the process of a record lives or is a zombie, whose exit
// code can still be read.
func present(rec proto.State) bool {
	_, there := processOf(rec)
	return there
}

// processOf returns the status of a record's process as a letter of proc(5).
func processOf(rec proto.State) (status string, there bool) {
	if rec.Pid <= 0 || !sameBoot(rec) {
		return "", false
	}
	stat, err := proto.ReadFile("/proc/" + strconv.Itoa(rec.Pid) + "/stat")
	if err != nil {
		return "", false
	}
	// The name in field 2 may contain any character, so the fields are counted from
	// its closing parenthesis.
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return "", false
	}
	n := 0
	for field := range bytes.FieldsSeq(stat[i+1:]) {
		switch n {
		case 0:
			status = string(field)
		case 19:
			start, err := strconv.ParseUint(string(field), 10, 64)
			return status, err == nil && start == rec.PidStart
		}
		n++
	}
	return "", false
}

// sameBoot reports whether a record is of this boot of the machine.
func sameBoot(rec proto.State) bool {
	boot, err := bootID()
	return err == nil && (rec.BootID == "" || rec.BootID == boot)
}

// thisBoot caches the boot ID, which can't change while this process lives.
var thisBoot atomic.Pointer[string]

func bootID() (string, error) {
	if id := thisBoot.Load(); id != nil {
		return *id, nil
	}
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err // not cached: the next call tries again
	}
	id := strings.TrimSpace(string(text))
	thisBoot.Store(&id)
	return id, nil
}
