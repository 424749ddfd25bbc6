// SPDX-License-Identifier: Apache-2.0

package dump

import (
	"errors"
	"testing"
)

func TestInterruptedListingIsBegunAgain(t *testing.T) {
	calls := 0
	all, err := Whole(func() ([]int, error) {
		if calls++; calls < 3 {
			return []int{1}, ErrInterrupted
		}
		return []int{1, 2}, nil
	})
	if err != nil || len(all) != 2 || calls != 3 {
		t.Errorf("%v %v after %d calls", all, err, calls)
	}
	other := errors.New("other")
	calls = 0
	if _, err := Whole(func() ([]int, error) { calls++; return nil, other }); err != other || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
	calls = 0
	if err := repeat(0, func() error { calls++; return ErrInterrupted }); !errors.Is(err, ErrInterrupted) || calls != tries {
		t.Errorf("what is never whole is taken as it is: %v after %d calls", err, calls)
	}
}
