// SPDX-License-Identifier: Apache-2.0

// Package lookup finds an object by a user's reference. One rule holds for all
// kinds of objects: the full ID, then the name, then the unique beginning of an
// ID. So a name can hide the abbreviated ID of another object, but never its full
// ID. The package is pure: the caller provides the objects and words the errors.
package lookup

import (
	"errors"
	"iter"
	"strings"
)

var (
	// ErrNone: no object matches.
	ErrNone = errors.New("not found")
	// ErrSeveral: several IDs begin with the reference.
	ErrSeveral = errors.New("ambiguous")
)

// In provides the objects of one kind.
type In[T any] struct {
	ID   func(id string) (T, bool)   // by the full ID
	Name func(name string) (T, bool) // nil: the objects have no names
	// All returns the objects with their IDs. If it is nil, abbreviated IDs are not
	// accepted.
	All iter.Seq2[string, T]
}

// Find returns the object that ref refers to. Errors: ErrNone, ErrSeveral. No
// object matches an empty ref.
func Find[T any](ref string, in In[T]) (T, error) {
	var none T
	if ref == "" {
		return none, ErrNone
	}
	if v, ok := in.ID(ref); ok {
		return v, nil
	}
	if in.Name != nil {
		if v, ok := in.Name(ref); ok {
			return v, nil
		}
	}
	if in.All == nil {
		return none, ErrNone
	}
	found, err := none, ErrNone
	for id, v := range in.All {
		if !strings.HasPrefix(id, ref) {
			continue
		}
		if err == nil {
			return none, ErrSeveral
		}
		found, err = v, nil
	}
	return found, err
}
