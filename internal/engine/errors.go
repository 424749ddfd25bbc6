// SPDX-License-Identifier: Apache-2.0

package engine

import "github.com/containerd/errdefs"

// errNothing means that the object already is as requested: 304 in HTTP.
var errNothing = errdefs.ErrNotModified

func isNotFound(err error) bool { return errdefs.IsNotFound(err) }
