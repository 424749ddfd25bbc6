// Package script runs a day's work with a container engine: each script of
// testdata once with Docker's own client and once with holdfast, and what
// clients don't say over the bare API. Every test has a daemon of its own. It
// looks at the product from outside alone, as its users do.
package script
