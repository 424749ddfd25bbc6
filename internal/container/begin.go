// SPDX-License-Identifier: Apache-2.0

package container

// Begin is the occasion on which a daemon finds that a container does not run.
type Begin uint8

const (
	// Living: the daemon runs already. The container ended meanwhile, and its
	// shim, which otherwise applies the policy, is gone too.
	Living Begin = iota
	// BeginBoot: the daemon starts after a boot of the machine.
	BeginBoot
	// BeginStart: the daemon starts after its predecessor was stopped: a start or
	// a restart of the service, or an upgrade that restarts it.
	BeginStart
	// BeginCrash: the daemon starts after its predecessor died.
	BeginCrash
	// BeginTakeover: the predecessor handed over, also for an upgrade in place. It
	// also applies to a daemon that goes on after a handover that failed.
	BeginTakeover

	numBegins
)

var beginNames = [numBegins]string{"living", "boot", "start", "crash", "takeover"}

func (b Begin) String() string { return beginNames[b] }

// ShouldRun reports whether a restart policy starts a container that a daemon
// finds not running. testdata/begin.golden shows every case.
//
// When a daemon starts, always starts the container even if its user had stopped
// it, and unless-stopped only if not. on-failure starts it after an exit code
// other than 0, within its limit, unless its user had stopped it. A takeover
// starts nothing. While a daemon runs, no policy starts a container that its user
// has stopped.
//
// Source: Docker's documentation of restart policies, and dockerd's behaviour
// (TestRestartPoliciesAreDockersHoweverTheDaemonBegins).
func ShouldRun(b Begin, p RestartPolicy, d Desired, hasRun bool, exitCode, restarts int) bool {
	if !hasRun || b == BeginTakeover {
		return false
	}
	stopped := d != DesiredRunning
	switch p.Name {
	case "always":
		return !stopped || b != Living
	case "unless-stopped":
		return !stopped
	case "on-failure":
		return !stopped && exitCode != 0 && (p.MaxRetries == 0 || restarts < p.MaxRetries)
	}
	return false
}
