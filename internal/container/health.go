// SPDX-License-Identifier: Apache-2.0

package container

// The health states of the API.
const (
	HealthNone      = ""
	HealthStarting  = "starting"
	HealthHealthy   = "healthy"
	HealthUnhealthy = "unhealthy"
)

// Health is what the API shows of a container's health check. checked reports
// whether it has one. seen is the status that its shim determined last, empty
// before the first run. testdata/health.golden shows every case.
//
// As in Docker, a container that does not run is unhealthy, so that a client that
// waits for "unhealthy" is answered when the container has ended. A container
// that never ran has no health. A pause makes a container unhealthy until its
// next check; the shim does that. A restart of the daemon changes nothing: the
// shim continues the checks, whereas Docker starts them anew.
func Health(s State, hasRun, checked bool, seen string) string {
	if !checked || !hasRun {
		return HealthNone
	}
	switch s {
	case Running, Paused, Unknown:
		if seen == HealthNone {
			return HealthStarting
		}
		return seen
	}
	return HealthUnhealthy
}
