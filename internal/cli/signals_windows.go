// SPDX-License-Identifier: Apache-2.0

package cli

import "os"

var terminationSignals = []os.Signal{os.Interrupt}
