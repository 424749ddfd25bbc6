// SPDX-License-Identifier: Apache-2.0

// Package upgrade runs releases together: the daemon of one release with the
// shims and files of another, newer or older, while containers run.
// versions.txt lists the commits. Each is built once and stored in
// .cache/versions.
package upgrade
