// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"holdfast/internal/network/bridge"
)

// forwardingFile records what the engine changed about the host's IP forwarding.
// It is in the exec root because a reboot resets both.
const forwardingFile = "forwarding.json"

const forwardingSchema = 1

// forwardingRecord is the content of forwardingFile. It is written before forwarding is
// switched on.
type forwardingRecord struct {
	Schema int `json:"schema"`
	// Boot and Namespace identify the boot and the network namespace that the
	// record is valid for.
	Boot      string `json:"boot"`
	Namespace uint64 `json:"namespace"`
	// Switched records, by family, that the engine switched forwarding on.
	Switched [2]bool `json:"switched"`
	// Before lists, by family, the interfaces whose packets the host forwarded
	// already.
	Before [2][]string `json:"before"`
}

// thisBoot returns an empty record for this boot and network namespace.
func thisBoot() (f forwardingRecord, err error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return f, err
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return f, fmt.Errorf("network namespace: %w", err)
	}
	return forwardingRecord{Schema: forwardingSchema, Boot: strings.TrimSpace(string(boot)), Namespace: st.Ino}, nil
}

// lastForwarding reads the record that an earlier daemon wrote during this boot.
// fresh is true if there is none.
func lastForwarding(execRoot string) (f forwardingRecord, fresh bool, err error) {
	now, err := thisBoot()
	if err != nil {
		return now, true, err
	}
	b, err := os.ReadFile(filepath.Join(execRoot, forwardingFile))
	if errors.Is(err, os.ErrNotExist) {
		return now, true, nil
	}
	if err != nil {
		return now, true, err
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return now, true, fmt.Errorf("%s: %w", forwardingFile, err)
	}
	if f.Boot != now.Boot || f.Namespace != now.Namespace {
		return now, true, nil
	}
	return f, false, nil
}

// forwarding switches the host's IP forwarding on.
type forwarding struct {
	opts *parsed
	// record is what the engine changed. Its schema is 0 until the file was read.
	record atomic.Pointer[forwardingRecord]
	// mu is held while the file is written.
	mu sync.Mutex
}

// current returns what the engine changed about the host's IP forwarding.
func (f *forwarding) current() forwardingRecord {
	if r := f.record.Load(); r != nil {
		return *r
	}
	return forwardingRecord{}
}

// intend records what enable is about to switch on for the bridges. From then on
// the rules drop forwarded packets that do not concern the bridges. The rules are
// applied before forwarding is on, so no such packet passes.
func (f *forwarding) intend(bridges ...wanted) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.current()
	write := false
	if r.Schema == 0 {
		var err error
		if r, write, err = lastForwarding(f.opts.ExecRoot); err != nil && r.Schema == 0 {
			return fmt.Errorf("forwarding: %w", err)
		}
		if err != nil {
			f.opts.Log.Warn("the record of IP forwarding can't be read: packets that the host forwards between its other interfaces are not dropped", "error", err)
		}
	}
	if f.opts.IPForward && len(bridges) > 0 {
		for v, v6 := range []bool{false, forwardsIPv6(bridges)} {
			if v == 1 && !v6 {
				continue
			}
			all, some, err := bridge.Forwards(v6)
			if err != nil {
				return fmt.Errorf("forwarding: %w", err)
			}
			if !all && !r.Switched[v] {
				r.Switched[v], r.Before[v], write = true, some, true
			}
		}
		if write {
			if err := r.store(f.opts.ExecRoot); err != nil {
				return err
			}
		}
	}
	f.record.Store(&r)
	return nil
}

// store writes the record.
func (f forwardingRecord) store(execRoot string) error {
	b, err := json.Marshal(f)
	if err == nil {
		err = write(execRoot, forwardingFile, append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("forwarding: %w", err)
	}
	return nil
}

func forwardsIPv6(bridges []wanted) bool {
	return slices.ContainsFunc(bridges, func(b wanted) bool { return b.IPv6 && !b.internal })
}

// enable switches on the IP forwarding that the bridges need. Call intend and apply
// the rules first.
func (f *forwarding) enable(bridges ...wanted) error {
	if !f.opts.IPForward || len(bridges) == 0 {
		return nil
	}
	v6 := forwardsIPv6(bridges)
	changed, err := bridge.Forward(v6)
	if err != nil {
		return fmt.Errorf("enable forwarding (or set \"ip-forward\" to false): %w", err)
	}
	if changed {
		f.opts.Log.Info("forwarding enabled", "ipv6", v6)
	}
	return nil
}
