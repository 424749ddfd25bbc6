// SPDX-License-Identifier: Apache-2.0

package swarmserver

import (
	"context"
	"net/http"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/v2/daemon/cluster/convert"
	"github.com/moby/swarmkit/v2/api"
	"google.golang.org/grpc"

	"holdfast/internal/api/wire"
	"holdfast/internal/errs"
	"holdfast/internal/filter"
)

// large permits answers with many objects, in bytes.
var large = grpc.MaxCallRecvMsgSize(128 << 20)

// one finds an object by its ID, its name, or the beginning of its ID, in this order.
func one[T any](what, ref string, byID func() (T, error), byName, byPrefix func() ([]T, error)) (found T, err error) {
	if found, err = byID(); err == nil {
		return found, nil
	}
	list, err := byName()
	if err == nil && len(list) == 0 {
		list, err = byPrefix()
	}
	switch {
	case err != nil:
		return found, err
	case len(list) == 0:
		return found, errs.NotFound("%s %s not found", what, ref)
	case len(list) > 1:
		return found, errs.Invalid("%s %s is ambiguous (%d matches found)", what, ref, len(list))
	}
	return list[0], nil
}

func findNode(ctx context.Context, c api.ControlClient, ref string) (*api.Node, error) {
	list := func(f *api.ListNodesRequest_Filters) ([]*api.Node, error) {
		res, err := c.ListNodes(ctx, &api.ListNodesRequest{Filters: f}, large)
		if err != nil {
			return nil, err
		}
		return res.Nodes, nil
	}
	return one("node", ref, func() (*api.Node, error) {
		res, err := c.GetNode(ctx, &api.GetNodeRequest{NodeID: ref})
		if err != nil {
			return nil, err
		}
		return res.Node, nil
	}, func() ([]*api.Node, error) { return list(&api.ListNodesRequest_Filters{Names: []string{ref}}) },
		func() ([]*api.Node, error) { return list(&api.ListNodesRequest_Filters{IDPrefixes: []string{ref}}) })
}

func findTask(ctx context.Context, c api.ControlClient, ref string) (*api.Task, error) {
	list := func(f *api.ListTasksRequest_Filters) ([]*api.Task, error) {
		res, err := c.ListTasks(ctx, &api.ListTasksRequest{Filters: f}, large)
		if err != nil {
			return nil, err
		}
		return res.Tasks, nil
	}
	return one("task", ref, func() (*api.Task, error) {
		res, err := c.GetTask(ctx, &api.GetTaskRequest{TaskID: ref})
		if err != nil {
			return nil, err
		}
		return res.Task, nil
	}, func() ([]*api.Task, error) { return list(&api.ListTasksRequest_Filters{Names: []string{ref}}) },
		func() ([]*api.Task, error) { return list(&api.ListTasksRequest_Filters{IDPrefixes: []string{ref}}) })
}

func findSecret(ctx context.Context, c api.ControlClient, ref string) (*api.Secret, error) {
	list := func(f *api.ListSecretsRequest_Filters) ([]*api.Secret, error) {
		res, err := c.ListSecrets(ctx, &api.ListSecretsRequest{Filters: f}, large)
		if err != nil {
			return nil, err
		}
		return res.Secrets, nil
	}
	return one("secret", ref, func() (*api.Secret, error) {
		res, err := c.GetSecret(ctx, &api.GetSecretRequest{SecretID: ref})
		if err != nil {
			return nil, err
		}
		return res.Secret, nil
	}, func() ([]*api.Secret, error) { return list(&api.ListSecretsRequest_Filters{Names: []string{ref}}) },
		func() ([]*api.Secret, error) { return list(&api.ListSecretsRequest_Filters{IDPrefixes: []string{ref}}) })
}

func findConfig(ctx context.Context, c api.ControlClient, ref string) (*api.Config, error) {
	list := func(f *api.ListConfigsRequest_Filters) ([]*api.Config, error) {
		res, err := c.ListConfigs(ctx, &api.ListConfigsRequest{Filters: f}, large)
		if err != nil {
			return nil, err
		}
		return res.Configs, nil
	}
	return one("config", ref, func() (*api.Config, error) {
		res, err := c.GetConfig(ctx, &api.GetConfigRequest{ConfigID: ref})
		if err != nil {
			return nil, err
		}
		return res.Config, nil
	}, func() ([]*api.Config, error) { return list(&api.ListConfigsRequest_Filters{Names: []string{ref}}) },
		func() ([]*api.Config, error) { return list(&api.ListConfigsRequest_Filters{IDPrefixes: []string{ref}}) })
}

// filters reads the filters of a list, which may have these terms.
func filters(r *wire.Request, terms ...string) (filter.Args, error) {
	f, err := r.Filters()
	if err != nil {
		return nil, err
	}
	return f, f.Check(terms...)
}

// pairs turns KEY=VALUE and KEY into a map.
func pairs(list []string) map[string]string {
	all := map[string]string{}
	for _, entry := range list {
		key, value, _ := strings.Cut(entry, "=")
		all[key] = value
	}
	return all
}

// enum translates filters that name values of an enumeration.
func enum[T ~int32](f filter.Args, term string, values map[string]int32) (list []T, err error) {
	for _, name := range f[term] {
		value, ok := values[strings.ToUpper(name)]
		if !ok && name != "" {
			return nil, errs.Invalid("Invalid %s filter: '%s'", term, name)
		}
		if ok {
			list = append(list, T(value))
		}
	}
	return list, nil
}

func (s *onManagers) listNodes(r *wire.Request, _ http.ResponseWriter) (any, error) {
	f, err := filters(r, "name", "id", "label", "role", "membership", "node.label")
	if err != nil {
		return nil, err
	}
	wanted := &api.ListNodesRequest_Filters{NamePrefixes: f["name"], IDPrefixes: f["id"], Labels: pairs(f["label"]), NodeLabels: pairs(f["node.label"])}
	if wanted.Roles, err = enum[api.NodeRole](f, "role", api.NodeRole_value); err != nil {
		return nil, err
	}
	if wanted.Memberships, err = enum[api.NodeSpec_Membership](f, "membership", api.NodeSpec_Membership_value); err != nil {
		return nil, err
	}
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		res, err := v.control.ListNodes(ctx, &api.ListNodesRequest{Filters: wanted}, large)
		if err != nil {
			return nil, err
		}
		nodes := []swarm.Node{}
		for _, n := range res.Nodes {
			nodes = append(nodes, convert.NodeFromGRPC(*n))
		}
		return nodes, nil
	})
}

func (s *onManagers) inspectNode(r *wire.Request, _ http.ResponseWriter) (any, error) {
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		n, err := findNode(ctx, v.control, r.Name())
		if err != nil {
			return nil, err
		}
		return convert.NodeFromGRPC(*n), nil
	})
}

func (s *onManagers) updateNode(r *wire.Request, w http.ResponseWriter) (any, error) {
	spec, err := decode[swarm.NodeSpec](r, w)
	if err != nil {
		return nil, err
	}
	version, err := objectVersion(r, "node")
	if err != nil {
		return nil, err
	}
	converted, err := convert.NodeSpecToGRPC(spec)
	if err != nil {
		return nil, errs.Invalid("%s", err)
	}
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		n, err := findNode(ctx, v.control, r.Name())
		if err != nil {
			return nil, err
		}
		_, err = v.control.UpdateNode(ctx, &api.UpdateNodeRequest{NodeID: n.ID, Spec: &converted, NodeVersion: &api.Version{Index: version}})
		return nil, err
	})
}

func (s *onManagers) removeNode(r *wire.Request, _ http.ResponseWriter) (any, error) {
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		n, err := findNode(ctx, v.control, r.Name())
		if err != nil {
			return nil, err
		}
		_, err = v.control.RemoveNode(ctx, &api.RemoveNodeRequest{NodeID: n.ID, Force: r.Bool("force")})
		return nil, err
	})
}

func (s *onManagers) listTasks(r *wire.Request, _ http.ResponseWriter) (any, error) {
	f, err := filters(r, "name", "id", "label", "service", "node", "desired-state", "_up-to-date", "runtime")
	if err != nil {
		return nil, err
	}
	wanted := &api.ListTasksRequest_Filters{
		NamePrefixes: f["name"], IDPrefixes: f["id"], Labels: pairs(f["label"]), UpToDate: f.Has("_up-to-date"), Runtimes: f["runtime"],
	}
	if !f.Has("runtime") {
		wanted.Runtimes = []string{"container", ""}
	}
	if wanted.DesiredStates, err = enum[api.TaskState](f, "desired-state", api.TaskState_value); err != nil {
		return nil, err
	}
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		for _, ref := range f["service"] {
			service, err := findService(ctx, v.control, ref, false)
			if err != nil {
				return nil, err
			}
			wanted.ServiceIDs = append(wanted.ServiceIDs, service.ID)
		}
		for _, ref := range f["node"] {
			n, err := findNode(ctx, v.control, ref)
			if err != nil {
				return nil, err
			}
			wanted.NodeIDs = append(wanted.NodeIDs, n.ID)
		}
		res, err := v.control.ListTasks(ctx, &api.ListTasksRequest{Filters: wanted}, large)
		if err != nil {
			return nil, err
		}
		tasks := []swarm.Task{}
		for _, t := range res.Tasks {
			converted, err := convert.TaskFromGRPC(*t)
			if err != nil {
				return nil, err
			}
			tasks = append(tasks, converted)
		}
		return tasks, nil
	})
}

func (s *onManagers) inspectTask(r *wire.Request, _ http.ResponseWriter) (any, error) {
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		t, err := findTask(ctx, v.control, r.Name())
		if err != nil {
			return nil, err
		}
		converted, err := convert.TaskFromGRPC(*t)
		return converted, err
	})
}

func (s *onManagers) listSecrets(r *wire.Request, _ http.ResponseWriter) (any, error) {
	f, err := filters(r, "names", "name", "id", "label")
	if err != nil {
		return nil, err
	}
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		res, err := v.control.ListSecrets(ctx, &api.ListSecretsRequest{Filters: &api.ListSecretsRequest_Filters{
			Names: f["names"], NamePrefixes: f["name"], IDPrefixes: f["id"], Labels: pairs(f["label"]),
		}}, large)
		if err != nil {
			return nil, err
		}
		secrets := []swarm.Secret{}
		for _, one := range res.Secrets {
			secrets = append(secrets, convert.SecretFromGRPC(one))
		}
		return secrets, nil
	})
}

func (s *onManagers) createSecret(r *wire.Request, w http.ResponseWriter) (any, error) {
	spec, err := decode[swarm.SecretSpec](r, w)
	if err != nil {
		return nil, err
	}
	if spec.Templating != nil && r.Version.Before(37) {
		return nil, errs.Invalid("secret templating is not supported on the specified API version: %s", r.Version)
	}
	converted := convert.SecretSpecToGRPC(spec)
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		res, err := v.control.CreateSecret(ctx, &api.CreateSecretRequest{Spec: &converted})
		if err != nil {
			return nil, err
		}
		return swarm.SecretCreateResponse{ID: res.Secret.ID}, nil
	})
}

func (s *onManagers) inspectSecret(r *wire.Request, _ http.ResponseWriter) (any, error) {
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		secret, err := findSecret(ctx, v.control, r.Name())
		if err != nil {
			return nil, err
		}
		return convert.SecretFromGRPC(secret), nil
	})
}

func (s *onManagers) updateSecret(r *wire.Request, w http.ResponseWriter) (any, error) {
	spec, err := decode[swarm.SecretSpec](r, w)
	if err != nil {
		return nil, err
	}
	version, err := objectVersion(r, "secret")
	if err != nil {
		return nil, err
	}
	converted := convert.SecretSpecToGRPC(spec)
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		secret, err := findSecret(ctx, v.control, r.Name())
		if err != nil {
			return nil, err
		}
		_, err = v.control.UpdateSecret(ctx, &api.UpdateSecretRequest{SecretID: secret.ID, SecretVersion: &api.Version{Index: version}, Spec: &converted})
		return nil, err
	})
}

func (s *onManagers) removeSecret(r *wire.Request, w http.ResponseWriter) (any, error) {
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		secret, err := findSecret(ctx, v.control, r.Name())
		if err != nil {
			return nil, err
		}
		if _, err := v.control.RemoveSecret(ctx, &api.RemoveSecretRequest{SecretID: secret.ID}); err != nil {
			return nil, err
		}
		w.WriteHeader(http.StatusNoContent)
		return streamed, nil
	})
}

func (s *onManagers) listConfigs(r *wire.Request, _ http.ResponseWriter) (any, error) {
	f, err := filters(r, "name", "id", "label")
	if err != nil {
		return nil, err
	}
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		res, err := v.control.ListConfigs(ctx, &api.ListConfigsRequest{Filters: &api.ListConfigsRequest_Filters{
			NamePrefixes: f["name"], IDPrefixes: f["id"], Labels: pairs(f["label"]),
		}}, large)
		if err != nil {
			return nil, err
		}
		configs := []swarm.Config{}
		for _, one := range res.Configs {
			configs = append(configs, convert.ConfigFromGRPC(one))
		}
		return configs, nil
	})
}

func (s *onManagers) createConfig(r *wire.Request, w http.ResponseWriter) (any, error) {
	spec, err := decode[swarm.ConfigSpec](r, w)
	if err != nil {
		return nil, err
	}
	if spec.Templating != nil && r.Version.Before(37) {
		return nil, errs.Invalid("config templating is not supported on the specified API version: %s", r.Version)
	}
	converted := convert.ConfigSpecToGRPC(spec)
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		res, err := v.control.CreateConfig(ctx, &api.CreateConfigRequest{Spec: &converted})
		if err != nil {
			return nil, err
		}
		return swarm.ConfigCreateResponse{ID: res.Config.ID}, nil
	})
}

func (s *onManagers) inspectConfig(r *wire.Request, _ http.ResponseWriter) (any, error) {
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		config, err := findConfig(ctx, v.control, r.Name())
		if err != nil {
			return nil, err
		}
		return convert.ConfigFromGRPC(config), nil
	})
}

func (s *onManagers) updateConfig(r *wire.Request, w http.ResponseWriter) (any, error) {
	spec, err := decode[swarm.ConfigSpec](r, w)
	if err != nil {
		return nil, err
	}
	version, err := objectVersion(r, "config")
	if err != nil {
		return nil, err
	}
	converted := convert.ConfigSpecToGRPC(spec)
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		config, err := findConfig(ctx, v.control, r.Name())
		if err != nil {
			return nil, err
		}
		_, err = v.control.UpdateConfig(ctx, &api.UpdateConfigRequest{ConfigID: config.ID, ConfigVersion: &api.Version{Index: version}, Spec: &converted})
		return nil, err
	})
}

func (s *onManagers) removeConfig(r *wire.Request, w http.ResponseWriter) (any, error) {
	return s.onManager(r, func(ctx context.Context, v view) (any, error) {
		config, err := findConfig(ctx, v.control, r.Name())
		if err != nil {
			return nil, err
		}
		if _, err := v.control.RemoveConfig(ctx, &api.RemoveConfigRequest{ConfigID: config.ID}); err != nil {
			return nil, err
		}
		w.WriteHeader(http.StatusNoContent)
		return streamed, nil
	})
}
