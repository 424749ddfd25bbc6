// SPDX-License-Identifier: Apache-2.0

//go:build linux

package demo

import (
	"embed"
	"errors"
	"io/fs"
)

//go:generate go run ./mkimage image/image.tar

// imageFiles is the folder that the image is built into.
//
//go:embed image
var imageFiles embed.FS

const imageRef = "holdfast/demo:latest"

var errNoImage = errors.New("this binary was built without the demo's image; build it with 'make build'")

func image() (fs.File, error) {
	f, err := imageFiles.Open("image/image.tar")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoImage
	}
	return f, err
}
