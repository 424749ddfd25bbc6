// SPDX-License-Identifier: Apache-2.0

// Package nodaemon lets the command line work when no daemon answers. It only
// chooses between the daemon and an observer. The observer is "holdfastd
// observe", which it starts for the duration of the command. The observer
// answers from the last daemon's files and by asking the containers' shims.
package nodaemon
