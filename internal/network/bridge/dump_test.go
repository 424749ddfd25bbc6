// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestInterruptedListingIsBegunAgain(t *testing.T) {
	calls := 0
	all, err := whole(func() ([]int, error) {
		if calls++; calls < 3 {
			return []int{1}, netlink.ErrDumpInterrupted
		}
		return []int{1, 2}, nil
	})
	if err != nil || len(all) != 2 || calls != 3 {
		t.Errorf("%v %v after %d calls", all, err, calls)
	}
	other := errors.New("other")
	calls = 0
	if _, err := whole(func() ([]int, error) { calls++; return nil, other }); err != other || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
	if _, err := whole(func() ([]int, error) { return nil, netlink.ErrDumpInterrupted }); !errors.Is(err, netlink.ErrDumpInterrupted) {
		t.Errorf("what is never whole is taken as it is: %v", err)
	}
}
