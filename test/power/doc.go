// SPDX-License-Identifier: Apache-2.0

// Package power tests what a loss of power leaves. It owns the machine that is cut
// off, the clients that write down what they ask for and what is answered, and the
// comparison of that with what a daemon finds. Package disk is the disk. See
// docs/reliability-power.md.
package power
