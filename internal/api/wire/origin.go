// SPDX-License-Identifier: Apache-2.0

package wire

import "context"

type originKey struct{}

// WithOriginChecked marks a request whose origin, a web page or none, was
// already checked.
func WithOriginChecked(ctx context.Context) context.Context {
	return context.WithValue(ctx, originKey{}, true)
}

// OriginChecked reports whether WithOriginChecked marked the request.
func OriginChecked(ctx context.Context) bool {
	checked, _ := ctx.Value(originKey{}).(bool)
	return checked
}
