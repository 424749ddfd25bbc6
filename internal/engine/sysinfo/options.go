// SPDX-License-Identifier: Apache-2.0

package sysinfo

// DiskUsageOptions select the kinds of object for which GET /system/df returns the
// disk usage. A kind that is not selected is nil in the answer. Items are always
// listed; package api drops them for clients that only want totals.
type DiskUsageOptions struct {
	Containers, Images, Volumes, BuildCache bool
}
