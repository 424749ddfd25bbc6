// SPDX-License-Identifier: Apache-2.0

package image

import (
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/metadata"
)

// contents are the blobs of images, and the documents among them: indexes,
// manifests and configurations. It has no lock of its own.
type contents struct {
	env
	db      *metadata.DB
	content content.Store
	// blobsOnDisk is the store below content. Only content knows which blobs
	// are needed.
	blobsOnDisk content.Store
	docs        documents
}
