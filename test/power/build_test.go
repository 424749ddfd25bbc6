// SPDX-License-Identifier: Apache-2.0

package power

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"strings"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/client"
)

// contexts is the number of build contexts. They are few, so that builds find in the
// cache what others have made.
const contexts = 3

// buildContext returns a context with a Dockerfile, and the files that its image has
// besides those of the base image.
func buildContext(n int) (io.Reader, files) {
	r := rand.New(rand.NewPCG(uint64(n), 7))
	list, all := layerFiles(r, dataFolder, fmt.Sprintf("context %d", n))
	dockerfile := fmt.Sprintf("FROM %s\nCOPY %s /%s\nRUN echo made %d >/%s/made && cat /%s/* | md5sum >/dev/null\nCMD [\"true\"]\n",
		baseTag, dataFolder, dataFolder, n, dataFolder, dataFolder)
	all[dataFolder+"/made"] = sum(fmt.Appendf(nil, "made %d\n", n))
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(name string, body []byte) {
		h := &tar.Header{Name: name, Mode: 0o644, Typeflag: tar.TypeReg, Size: int64(len(body))}
		if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		// A buffer takes all.
		_ = w.WriteHeader(h)
		_, _ = w.Write(body)
	}
	put("Dockerfile", []byte(dockerfile))
	for _, f := range list {
		put(f.Name, f.Body)
	}
	_ = w.Close()
	return &b, all
}

// buildImage builds a context.
func buildImage(ctx context.Context, api *client.Client, n int, name string) error {
	in, _ := buildContext(n)
	res, err := api.ImageBuild(ctx, in, client.ImageBuildOptions{Tags: []string{name}, Version: build.BuilderV1, Remove: true})
	if err != nil {
		return err
	}
	out, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		return err
	}
	if strings.Contains(string(out), `"error"`) || !strings.Contains(string(out), "Successfully built") {
		return fmt.Errorf("the build says %s", out)
	}
	return nil
}

// build builds an image on the base image.
func (w *worker) build(ctx context.Context) error {
	if len(w.images) >= 4 {
		return w.untag(ctx)
	}
	n := w.r.IntN(contexts)
	name := w.next("built") + ":1"
	_, own := buildContext(n)
	f := maps.Clone(w.shared.filesOf(baseTag))
	maps.Copy(f, own)
	o := w.l.ask("tag "+name, anything, builtProperty(n), there)
	if err := buildImage(ctx, w.api, n, name); err != nil {
		return fmt.Errorf("build %s: %w", name, err)
	}
	return w.hasImage(ctx, o, name, f)
}

// builtProperty says that a context was built once.
func builtProperty(n int) string { return fmt.Sprintf("built %d", n) }

func (c *contentTable) filesOf(tag string) files {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.byID[c.tags[tag]]
}

// builds builds again what was built before, or was about to be. The cache may be
// whole, partly there or lost, and the image is the same.
func (i *inspection) builds(ctx context.Context) error {
	base, sure := i.want.must("tag " + baseTag)
	if !sure || base == "" {
		return nil
	}
	for n := range contexts {
		if i.want.allows(builtProperty(n), "") && !i.want.allows(builtProperty(n), there) {
			continue
		}
		name := fmt.Sprintf("again-%d:1", n)
		if err := buildImage(ctx, i.api, n, name); err != nil {
			i.wrong("context %d can't be built again: %v", n, err)
			continue
		}
		_, own := buildContext(n)
		want := maps.Clone(i.known[base])
		maps.Copy(want, own)
		i.image(ctx, name, want)
	}
	return nil
}
