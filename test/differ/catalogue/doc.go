// SPDX-License-Identifier: Apache-2.0

// Package catalogue parses the entries of test/differ, normalises the answers
// of two engines, and compares them. It starts nothing and sends no requests,
// so its tests need no root. docs/differ.md describes the format of entries.
package catalogue
