// SPDX-License-Identifier: Apache-2.0

package image

import (
	"slices"
	"testing"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
)

func TestEntrypointTakesTheCommandOfTheOldOne(t *testing.T) {
	for _, c := range []struct {
		name    string
		changes []string
		want    []string
	}{
		{"alone", []string{`ENTRYPOINT ["new"]`}, nil},
		{"after a command", []string{`CMD ["mine"]`, `ENTRYPOINT ["new"]`}, []string{"mine"}},
		{"before a command", []string{`entrypoint ["new"]`, `cmd ["mine"]`}, []string{"mine"}},
		{"something else", []string{`ENV A=1`}, []string{"old"}},
		{"after none", []string{`CMD []`, `ENTRYPOINT ["new"]`}, nil},
		{"none", []string{`ENTRYPOINT []`}, []string{"old"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var conf dockerspec.DockerOCIImageConfig
			conf.Entrypoint, conf.Cmd = []string{"/bin/sh", "-c"}, []string{"old"}
			if err := applyChanges(&conf, c.changes); err != nil || !slices.Equal(conf.Cmd, c.want) {
				t.Errorf("%v %v, want %v", err, conf.Cmd, c.want)
			}
		})
	}
}
