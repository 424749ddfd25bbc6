// SPDX-License-Identifier: Apache-2.0

package buildserver

import (
	"encoding/base64"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/util/entitlements"
	mobycontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/registry"

	"holdfast/internal/errs"
)

// request is POST /build as BuildKit needs it.
type request struct {
	// id is the client's name of the build, by which it can be cancelled.
	id string
	// session is the client's own session, "" if it has none.
	session string
	// remote is where the context is, "" if it is the request's body or in the
	// client's session.
	remote     string
	body       bool   // the context is the request's body
	dockerfile string // path in the context
	target     string
	tags       []string
	quiet      bool
	buildkit   bool // the client asks for BuildKit's own progress
	attrs      map[string]string
	exports    []*controlapi.Exporter
	imports    []*controlapi.CacheOptionsEntry
	auth       map[string]registry.AuthConfig // by registry
	// entitlements are what the client asks for by asking for the build.
	entitlements []string
}

// Values of the parameter remote and of a session of the client's.
const remoteSession = "client-session"

// refusedParams are the parameters that BuildKit has no counterpart for. A build that
// ignored a limit would not be what was asked for.
var refusedParams = map[string]string{
	"squash": "squashing the layers", "securityopt": "security options",
}

// limits are the parameters that limit a RUN step. BuildKit knows them by the same
// names.
var limits = []string{"memory", "memswap", "cpushares", "cpuperiod", "cpuquota", "cpusetcpus", "cpusetmems"}

// parseRequest reads the parameters of POST /build (Docker Engine API, "ImageBuild").
// Errors: invalid argument.
func parseRequest(q url.Values, registryConfig string) (*request, error) {
	r := &request{
		id: q.Get("buildid"), session: q.Get("session"), dockerfile: q.Get("dockerfile"), target: q.Get("target"),
		quiet: truth(q.Get("q")), buildkit: q.Get("version") == "2", attrs: map[string]string{},
	}
	r.remote = q.Get("remote")
	r.body = r.remote == ""
	if r.remote == remoteSession {
		r.remote = ""
		if r.session == "" {
			return nil, errs.Invalid("remote=client-session needs the parameter session")
		}
	}
	for name, what := range refusedParams {
		if v := q.Get(name); v != "" && v != "0" && v != "null" && v != "[]" && !strings.EqualFold(v, "false") {
			return nil, errs.Invalid("%s=%s: builds don't support %s", name, v, what)
		}
	}
	for _, t := range q["t"] {
		if t != "" {
			r.tags = append(r.tags, t)
		}
	}
	if r.dockerfile == "" {
		r.dockerfile = "Dockerfile"
	}
	r.attrs["filename"] = r.dockerfile
	set := func(name, value string) {
		if value != "" {
			r.attrs[name] = value
		}
	}
	set("target", r.target)
	set("platform", q.Get("platform"))
	set("cgroup-parent", q.Get("cgroupparent"))
	set("add-hosts", extraHosts(q["extrahosts"]))
	if truth(q.Get("nocache")) {
		r.attrs["no-cache"] = ""
	}
	r.attrs["image-resolve-mode"] = "local"
	if truth(q.Get("pull")) {
		r.attrs["image-resolve-mode"] = "pull"
	}
	if v := q.Get("shmsize"); v != "" && v != "0" {
		if _, err := strconv.ParseUint(v, 10, 63); err != nil {
			return nil, errs.Invalid("shmsize %q is not a size in bytes", v)
		}
		r.attrs["shm-size"] = v
	}
	r.parseLimits(q)
	return r, firstError(r.parseJSON(q), r.parseAuth(registryConfig))
}

// parseLimits reads the limits of RUN steps and their network.
func (r *request) parseLimits(q url.Values) {
	for _, name := range limits {
		if v := q.Get(name); v != "" && v != "0" && (name != "cpuquota" || v != "-1") {
			r.attrs[name] = v
		}
	}
	mode := q.Get("networkmode")
	if mode != "" {
		r.attrs[attrNetwork] = mode
	}
	if mode == "host" {
		r.entitlements = append(r.entitlements, entitlements.EntitlementNetworkHost.String())
	}
}

func firstError(all ...error) error {
	for _, err := range all {
		if err != nil {
			return err
		}
	}
	return nil
}

// parseJSON reads the parameters that are JSON.
func (r *request) parseJSON(q url.Values) error {
	var args, labels map[string]*string
	var from []string
	var limits []mobycontainer.Ulimit
	var outputs []struct {
		Type  string
		Attrs map[string]string
	}
	for name, into := range map[string]any{"buildargs": &args, "labels": &labels, "cachefrom": &from, "ulimits": &limits, "outputs": &outputs} {
		if text := q.Get(name); text != "" {
			if err := json.Unmarshal([]byte(text), into); err != nil {
				return errs.Invalid("the parameter %s: %v", name, err)
			}
		}
	}
	for k, v := range args {
		if v != nil {
			r.attrs["build-arg:"+k] = *v
		}
	}
	for k, v := range labels {
		r.attrs["label:"+k] = ""
		if v != nil {
			r.attrs["label:"+k] = *v
		}
	}
	for _, ref := range from {
		r.imports = append(r.imports, &controlapi.CacheOptionsEntry{Type: "registry", Attrs: map[string]string{"ref": ref}})
	}
	var texts []string
	for _, l := range limits {
		texts = append(texts, fmt.Sprintf("%s=%d:%d", l.Name, l.Soft, l.Hard))
	}
	if len(texts) > 0 {
		r.attrs["ulimit"] = strings.Join(texts, ",")
	}
	for _, o := range outputs {
		if !slices.Contains([]string{"moby", "image", "local", "tar", "oci", "docker", "cacheonly"}, o.Type) {
			return errs.Invalid("unknown output %q", o.Type)
		}
		if o.Type != "cacheonly" {
			r.exports = append(r.exports, &controlapi.Exporter{Type: o.Type, Attrs: o.Attrs})
		}
	}
	if len(outputs) == 0 {
		r.exports = []*controlapi.Exporter{{Type: exporterMoby, Attrs: map[string]string{}}}
	}
	for _, e := range r.exports {
		if len(r.tags) > 0 && (e.Type == exporterMoby || e.Type == "image") {
			if e.Attrs == nil {
				e.Attrs = map[string]string{}
			}
			e.Attrs["name"] = strings.Join(r.tags, ",")
		}
	}
	return nil
}

// parseAuth reads the header X-Registry-Config.
func (r *request) parseAuth(header string) error {
	if header == "" {
		return nil
	}
	text, err := base64.URLEncoding.DecodeString(header)
	if err != nil {
		text, err = base64.RawURLEncoding.DecodeString(header)
	}
	if err != nil || json.Unmarshal(text, &r.auth) != nil {
		return errs.Invalid("the header X-Registry-Config is not base64 of a JSON object")
	}
	return nil
}

// extraHosts translates "name:address" into BuildKit's "name=address".
func extraHosts(all []string) string {
	var out strings.Builder
	w := csv.NewWriter(&out)
	var fields []string
	for _, h := range all {
		name, address, ok := strings.Cut(h, ":")
		if eq := strings.Index(h, "="); eq >= 0 && (!ok || eq < len(name)) {
			name, address, ok = h[:eq], h[eq+1:], true
		}
		if ok {
			fields = append(fields, name+"="+address)
		}
	}
	if len(fields) == 0 {
		return ""
	}
	_ = w.Write(fields)
	w.Flush()
	return strings.TrimSuffix(out.String(), "\n")
}

// truth reads a boolean parameter as Docker does.
func truth(v string) bool {
	switch strings.ToLower(strings.TrimSpace(v)) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}
