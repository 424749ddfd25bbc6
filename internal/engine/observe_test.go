// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"reflect"
	"testing"

	"holdfast/internal/engine/objects"
)

// An Observer has no image store, so each request for images needs a refusal.
func TestObserverRefusesEveryRequestForImages(t *testing.T) {
	refused := reflect.TypeOf(refusedImages{})
	// No route leads to these: the requests for disk usage and information do, and
	// the image store.
	inner := map[string]bool{"Count": true, "ImagesUsage": true, "ImageEvent": true}
	for m := range reflect.TypeOf(&objects.Images{}).Methods() {
		if _, ok := refused.MethodByName(m.Name); !ok && !inner[m.Name] {
			t.Errorf("%s is not refused", m.Name)
		}
	}
}
