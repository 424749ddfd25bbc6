// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/docker/cli/cli"
)

// upgradeShimsPath is the API's path for upgrading the shims.
const upgradeShimsPath = "/holdfast/v1/shims/upgrade"

type shimUpgrade struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Before string `json:"before"`
	After  string `json:"after"`
	Error  string `json:"error"`
}

// upgradeShims asks the daemon that dial connects to, and prints the result for
// each shim. The exit code is 1 if one could not be upgraded.
func upgradeShims(ctx context.Context, dial func(context.Context) (net.Conn, error), binary string, out, errs io.Writer) error {
	web := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}}
	body, err := json.Marshal(map[string]string{"binary": binary})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://holdfast"+upgradeShimsPath, strings.NewReader(string(body)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := web.Do(req)
	if err != nil {
		return fmt.Errorf("the daemon does not answer: %w", err)
	}
	defer resp.Body.Close()
	var a struct {
		Shims   []shimUpgrade `json:"shims"`
		Message string        `json:"message"`
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, 64<<20)).Decode(&a)
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return errors.New("this daemon can't upgrade shims: its release does not support that, or it is another engine")
	case resp.StatusCode != http.StatusOK && a.Message != "":
		return errors.New(a.Message)
	case resp.StatusCode != http.StatusOK:
		return errors.New(resp.Status)
	case err != nil:
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	failed := 0
	for _, s := range a.Shims {
		if s.Error != "" {
			failed++
			fmt.Fprintf(errs, "%s: not upgraded, its shim is still version %s: %s\n", s.Name, s.Before, s.Error)
			continue
		}
		fmt.Fprintf(out, "%s: its shim is now version %s (before: version %s)\n", s.Name, s.After, s.Before)
	}
	if len(a.Shims) == 0 {
		fmt.Fprintln(out, "No container runs, so there is no shim to upgrade.")
	}
	if failed > 0 {
		return cli.StatusError{StatusCode: 1, Status: fmt.Sprintf("%d of %d shims could not be upgraded", failed, len(a.Shims))}
	}
	return nil
}
