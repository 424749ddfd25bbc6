package cli

import "os"

var terminationSignals = []os.Signal{os.Interrupt}
