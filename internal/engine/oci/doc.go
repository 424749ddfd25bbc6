// SPDX-License-Identifier: Apache-2.0

// Package oci turns an API request for a container into the configuration of an
// OCI runtime. It knows what the host supports (Probe), validates a request
// (Validate, Update), and makes the runtime's configuration (Build, ExecProcess,
// Resources) and the files of the sandbox (Hosts, ResolvConf, Hostname).
//
// It reads the host's state, a container's /etc/passwd and /etc/group, and device
// nodes; it changes nothing. It knows neither images nor networks nor volumes nor
// the store: the caller resolves paths and namespaces.
//
// Defaults, names and messages are those of the Docker Engine API
// (https://docs.docker.com/reference/api/engine/). The configuration is that of
// the OCI runtime specification
// (https://github.com/opencontainers/runtime-spec/blob/main/config.md).
package oci
