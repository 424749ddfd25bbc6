// SPDX-License-Identifier: Apache-2.0

// Package clock tests what jumps of the time of day change: nothing that runs. It
// builds a daemon and a shim whose package time adds a number of seconds to the time of
// day, which they read from a file that they map. So all processes of a daemon see a
// jump at the same instant, and the clock of the machine is never set. The monotonic
// clock goes on, as it does when a machine's clock is set.
package clock
