// SPDX-License-Identifier: Apache-2.0

package network

import "regexp"

// Interface names become parts of paths below /proc/sys and words in rules of
// packet filters, ours and other programs'. The kernel accepts nearly anything as
// a name. But iptables takes "br+" as every name that begins with br, the kernel
// replaces %d in "br%d" by a number, and a quotation mark ends a string of
// iptables-restore.
var interfaceName = regexp.MustCompile(`^[a-zA-Z0-9_.@][a-zA-Z0-9_.@-]{0,14}$`)

// isInterfaceName reports whether users may give an interface this name.
func isInterfaceName(name string) bool {
	return interfaceName.MatchString(name) && name != "." && name != ".."
}

// wantInterfaceName says in error messages which names are allowed.
const wantInterfaceName = "want at most 15 letters, digits, or _ . @ -, and no - first"
