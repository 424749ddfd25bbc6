// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/test/kit"
)

// flagRow gives one flag of the client a value, and says where its effect is seen.
type flagRow struct {
	args []string // the flag, and its value if it has one
	seen          // nothing: the flag is for the client alone
}

// seen is a place where the effect of a flag is seen, and what is there.
type seen struct{ where, what, want string }

// spec reads the specification of the service, as a template of "service inspect".
func spec(template, want string) seen { return seen{"spec", template, want} }

// box reads the container of the service, as a template of "inspect".
func box(template, want string) seen { return seen{"box", template, want} }

// within runs a command of a shell in the container of the service.
func within(command, want string) seen { return seen{"within", command, want} }

// troubled reads why the scheduler or the node does not run a task of the service.
func troubled(want string) seen { return seen{"troubled", "", want} }

// look returns what is at a place.
func (s seen) look(n *node, service string) string {
	switch s.where {
	case "spec":
		return n.Docker("service", "inspect", service, "-f", s.what)
	case "box":
		return n.Docker("inspect", "--type", "container", n.container(service), "-f", s.what)
	case "within":
		r := n.TryDocker("exec", n.container(service), "sh", "-c", s.what)
		return strings.TrimSpace(r.Stdout + r.Stderr)
	case "troubled":
		return n.Docker("service", "ps", "--no-trunc", "--format", "{{.Error}}", service)
	}
	return ""
}

func (s seen) holds(n *node, service string) (got string, ok bool) {
	if s.where == "" {
		return "", true
	}
	got = s.look(n, service)
	if s.where == "troubled" {
		return got, strings.Contains(got, s.want)
	}
	return got, got == s.want
}

// soon is holds, but waits for what takes some seconds, such as a health check. It does
// not fail the test, so that all rows that do not hold are reported.
func (s seen) soon(n *node, service string) (got string, ok bool) {
	late := time.After(time.Minute)
	for {
		if got, ok = s.holds(n, service); ok {
			return got, true
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-late:
			return got, false
		}
	}
}

// cgroup is a shell command that prints a setting of the container's cgroup in version 1
// or, where that is not there, in version 2.
func cgroup(v1, v2 string) string {
	return fmt.Sprintf("cat /sys/fs/cgroup/%s 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/%s", v1, v2)
}

// patient is a program that ends at once on the two signals of the tests.
const patient = "trap exit TERM USR1; while :; do sleep 0.1; done"

// rules are the flags of updates or rollbacks.
func rules(prefix, field string) []flagRow {
	at := "{{.Spec." + field + "."
	return []flagRow{
		{[]string{"--" + prefix + "-delay", "1s"}, spec(at+"Delay}}", "1s")},
		{[]string{"--" + prefix + "-failure-action", "continue"}, spec(at+"FailureAction}}", "continue")},
		{[]string{"--" + prefix + "-max-failure-ratio", "0.5"}, spec(at+"MaxFailureRatio}}", "0.5")},
		{[]string{"--" + prefix + "-monitor", "2s"}, spec(at+"Monitor}}", "2s")},
		{[]string{"--" + prefix + "-order", "start-first"}, spec(at+"Order}}", "start-first")},
		{[]string{"--" + prefix + "-parallelism", "3"}, spec(at+"Parallelism}}", "3")},
	}
}

// creates are the flags of "service create", by service. Each service has one task.
func creates(dir string) map[string][]flagRow {
	inspected := func(field string) string { return "{{.Spec.TaskTemplate." + field + "}}" }
	return map[string][]flagRow{
		"most": slices.Concat(rules("update", "UpdateConfig"), rules("rollback", "RollbackConfig"), []flagRow{
			{[]string{"--cap-add", "NET_ADMIN"}, within("grep CapBnd /proc/1/status | cut -f2", "00000000a00435fb")},
			{[]string{"--cap-drop", "MKNOD"}, box("{{.HostConfig.CapDrop}}", "[CAP_MKNOD]")},
			{[]string{"--config", "source=conf,target=/etc/conf"}, within("cat /etc/conf", "a config")},
			{[]string{"--constraint", "node.role==manager"}, spec(inspected("Placement.Constraints"), "[node.role==manager]")},
			{[]string{"--container-label", "drop=1"}, box(`{{index .Config.Labels "drop"}}`, "1")},
			{[]string{"--detach"}, seen{}},
			{[]string{"--dns", "192.0.2.53"}, box("{{.HostConfig.Dns}}", "[192.0.2.53]")},
			{[]string{"--dns-option", "ndots:3"}, within("grep -c ndots:3 /etc/resolv.conf", "1")},
			{[]string{"--dns-search", "example.test"}, within("grep ^search /etc/resolv.conf", "search example.test")},
			{[]string{"--entrypoint", "sh -c"}, box("{{.Config.Entrypoint}}", "[sh -c]")},
			{[]string{"--env", "ONE=1"}, within("echo $ONE", "1")},
			{[]string{"--env-file", dir + "/env"}, within("echo $TWO", "2")},
			{[]string{"--generic-resource", "ssd=2"}, within("echo $DOCKER_RESOURCE_SSD", "2")},
			{[]string{"--group", "1234"}, within("id -G", "8 1234")},
			{[]string{"--health-cmd", "test -d /etc"}, box("{{.State.Health.Status}}", "healthy")},
			{[]string{"--health-interval", "1s"}, box("{{.Config.Healthcheck.Interval}}", "1s")},
			{[]string{"--health-retries", "4"}, box("{{.Config.Healthcheck.Retries}}", "4")},
			{[]string{"--health-start-interval", "100ms"}, box("{{.Config.Healthcheck.StartInterval}}", "100ms")},
			{[]string{"--health-start-period", "20s"}, box("{{.Config.Healthcheck.StartPeriod}}", "20s")},
			{[]string{"--health-timeout", "5s"}, box("{{.Config.Healthcheck.Timeout}}", "5s")},
			{[]string{"--host", "other:192.0.2.99"}, within("grep other /etc/hosts | tr '\\t' ' '", "192.0.2.99 other")},
			{[]string{"--hostname", "h{{.Task.Slot}}"}, within("hostname", "h1")},
			{[]string{"--init"}, within("tr '\\0' '\\n' </proc/1/cmdline | grep -c init", "1")},
			{[]string{"--isolation", "default"}, box("{{.HostConfig.Isolation}}", "default")},
			{[]string{"--label", "drop=1"}, spec(`{{index .Spec.Labels "drop"}}`, "1")},
			{[]string{"--limit-cpu", "0.5"}, within(cgroup("cpu/cpu.cfs_quota_us", "cpu.max"), "50000")},
			{[]string{"--limit-memory", "64M"}, within(cgroup("memory/memory.limit_in_bytes", "memory.max"), "67108864")},
			{[]string{"--limit-pids", "50"}, within(cgroup("pids/pids.max", "pids.max"), "50")},
			{[]string{"--log-driver", "local"}, box("{{.HostConfig.LogConfig.Type}}", "local")},
			{[]string{"--log-opt", "max-size=1m"}, box("{{.HostConfig.LogConfig.Config}}", "map[max-size:1m]")},
			{[]string{"--mode", "replicated"}, spec("{{.Spec.Mode.Replicated.Replicas}}", "1")},
			{[]string{"--mount", "type=tmpfs,target=/scratch,tmpfs-size=1m"}, within("df -k /scratch | awk 'END {print $2}'", "1024")},
			{[]string{"--name", "most"}, spec("{{.Spec.Name}}", "most")},
			{[]string{"--network", "over"}, box("{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}", "over")},
			{[]string{"--no-resolve-image"}, spec(inspected("ContainerSpec.Image"), image)},
			{[]string{"--oom-score-adj", "100"}, within("cat /proc/1/oom_score_adj", "100")},
			{[]string{"--placement-pref", "spread=node.labels.rack"}, spec("{{(index .Spec.TaskTemplate.Placement.Preferences 0).Spread.SpreadDescriptor}}", "node.labels.rack")},
			{[]string{"--publish", "published=8085,target=80,mode=host"}, box(`{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}`, "8085")},
			{[]string{"--quiet"}, seen{}},
			{[]string{"--read-only"}, within("touch /file 2>&1 | grep -c Read-only", "1")},
			{[]string{"--replicas", "1"}, spec("{{.Spec.Mode.Replicated.Replicas}}", "1")},
			{[]string{"--replicas-max-per-node", "2"}, spec(inspected("Placement.MaxReplicas"), "2")},
			{[]string{"--reserve-cpu", "0.1"}, spec(inspected("Resources.Reservations.NanoCPUs"), "100000000")},
			{[]string{"--reserve-memory", "8M"}, spec(inspected("Resources.Reservations.MemoryBytes"), "8388608")},
			{[]string{"--restart-condition", "any"}, spec(inspected("RestartPolicy.Condition"), "any")},
			{[]string{"--restart-delay", "2s"}, spec(inspected("RestartPolicy.Delay"), "2s")},
			{[]string{"--restart-max-attempts", "5"}, spec(inspected("RestartPolicy.MaxAttempts"), "5")},
			{[]string{"--restart-window", "3s"}, spec(inspected("RestartPolicy.Window"), "3s")},
			{[]string{"--secret", "source=word,target=w,uid=7"}, within("cat /run/secrets/w", "a secret")},
			{[]string{"--stop-grace-period", "7s"}, box("{{.Config.StopTimeout}}", "7")},
			{[]string{"--stop-signal", "SIGUSR1"}, box("{{.Config.StopSignal}}", "SIGUSR1")},
			{[]string{"--sysctl", "net.core.somaxconn=333"}, within("cat /proc/sys/net/core/somaxconn", "333")},
			{[]string{"--tty"}, box("{{.Config.Tty}}", "true")},
			{[]string{"--ulimit", "nofile=100:200"}, within(`for p in /proc/[0-9]*; do [ "$(cut -d' ' -f4 $p/stat)" = 1 ] && awk '/open files/ {print $4, $5}' $p/limits; done`, "100 200")},
			{[]string{"--user", "7:8"}, within("id -u; id -g", "7\n8")},
			{[]string{"--with-registry-auth"}, seen{}},
			{[]string{"--workdir", "/etc"}, within("pwd", "/etc")},
		}),
		"names":   {{[]string{"--network", "over", "--endpoint-mode", "dnsrr"}, spec("{{.Spec.EndpointSpec.Mode}} {{len .Endpoint.VirtualIPs}}", "dnsrr 0")}},
		"sick":    {{[]string{"--no-healthcheck"}, box("{{.Config.Healthcheck.Test}}", "[NONE]")}},
		"nowhere": {{[]string{"--constraint", "node.role==worker"}, troubled("scheduling constraints not satisfied")}},
		"cpus":    {{[]string{"--reserve-cpu", "1000"}, troubled("insufficient resources")}},
		"memory":  {{[]string{"--reserve-memory", "1000G"}, troubled("insufficient resources")}},
		"crowd":   {{[]string{"--replicas", "2", "--replicas-max-per-node", "1"}, troubled("max replicas per node limit exceed")}},
		"ssds":    {{[]string{"--generic-resource", "ssd=9"}, troubled("insufficient resources")}},
		"windows": {{[]string{"--credential-spec", "file://account.json"}, troubled("credential spec")}},
		"hyperv":  {{[]string{"--isolation", "hyperv"}, troubled("isolation")}},
		"global":  {{[]string{"--mode", "global"}, spec("{{if .Spec.Mode.Global}}global{{end}}", "global")}},
		"job": {
			{[]string{"--mode", "replicated-job"}, spec("{{.Spec.Mode.ReplicatedJob.TotalCompletions}}", "1")},
			{[]string{"--max-concurrent", "1"}, spec("{{.Spec.Mode.ReplicatedJob.MaxConcurrent}}", "1")},
		},
	}
}

// updates are the flags of "service update", with their effects on the service "most".
func updates() []flagRow {
	inspected := func(field string) string { return "{{.Spec.TaskTemplate." + field + "}}" }
	return slices.Concat(rules("update", "UpdateConfig")[4:5], []flagRow{
		{[]string{"--args", "'" + patient + "' second"}, box("{{index .Config.Cmd 1}}", "second")},
		{[]string{"--cap-add", "SYS_TIME"}, box("{{.HostConfig.CapAdd}}", "[CAP_NET_ADMIN CAP_SYS_TIME]")},
		{[]string{"--cap-drop", "CHOWN"}, box("{{.HostConfig.CapDrop}}", "[CAP_CHOWN CAP_MKNOD]")},
		{[]string{"--config-add", "source=conf2,target=/etc/conf2"}, within("cat /etc/conf2", "another config")},
		{[]string{"--config-rm", "conf"}, within("ls /etc/conf 2>&1 | grep -c 'No such'", "1")},
		{[]string{"--constraint-add", "node.hostname!=nobody"}, spec(inspected("Placement.Constraints"), "[node.hostname!=nobody]")},
		{[]string{"--constraint-rm", "node.role==manager"}, spec("{{len .Spec.TaskTemplate.Placement.Constraints}}", "1")},
		{[]string{"--container-label-add", "add=2"}, box(`{{index .Config.Labels "add"}}`, "2")},
		{[]string{"--container-label-rm", "drop"}, box(`{{index .Config.Labels "drop"}}`, "")},
		{[]string{"--detach"}, seen{}},
		{[]string{"--dns-add", "192.0.2.54"}, box("{{.HostConfig.Dns}}", "[192.0.2.54]")},
		{[]string{"--dns-rm", "192.0.2.53"}, box("{{len .HostConfig.Dns}}", "1")},
		{[]string{"--dns-option-add", "ndots:4"}, within("grep -c ndots:4 /etc/resolv.conf", "1")},
		{[]string{"--dns-option-rm", "ndots:3"}, within("grep -c ndots:3 /etc/resolv.conf", "0")},
		{[]string{"--dns-search-add", "example.net"}, within("grep ^search /etc/resolv.conf", "search example.net")},
		{[]string{"--dns-search-rm", "example.test"}, box("{{.HostConfig.DnsSearch}}", "[example.net]")},
		{[]string{"--endpoint-mode", "dnsrr"}, spec("{{.Spec.EndpointSpec.Mode}} {{len .Endpoint.VirtualIPs}}", "dnsrr 0")},
		{[]string{"--entrypoint", "/bin/sh -c"}, box("{{.Config.Entrypoint}}", "[/bin/sh -c]")},
		{[]string{"--env-add", "THREE=3"}, within("echo $THREE", "3")},
		{[]string{"--env-rm", "ONE"}, within("echo .$ONE", ".")},
		{[]string{"--force"}, spec(inspected("ForceUpdate"), "1")},
		{[]string{"--generic-resource-add", "gpu=1"}, within("echo $DOCKER_RESOURCE_GPU", "1")},
		{[]string{"--generic-resource-rm", "ssd"}, within("echo .$DOCKER_RESOURCE_SSD", ".")},
		{[]string{"--group-add", "4321"}, within("id -G", "10 4321")},
		{[]string{"--group-rm", "1234"}, box("{{.HostConfig.GroupAdd}}", "[4321]")},
		{[]string{"--health-cmd", "test -d /tmp"}, box("{{.Config.Healthcheck.Test}}", "[CMD-SHELL test -d /tmp]")},
		{[]string{"--health-interval", "2s"}, box("{{.Config.Healthcheck.Interval}}", "2s")},
		{[]string{"--health-retries", "5"}, box("{{.Config.Healthcheck.Retries}}", "5")},
		{[]string{"--health-start-period", "21s"}, box("{{.Config.Healthcheck.StartPeriod}}", "21s")},
		{[]string{"--health-timeout", "6s"}, box("{{.Config.Healthcheck.Timeout}}", "6s")},
		{[]string{"--host-add", "third:192.0.2.97"}, within("grep third /etc/hosts | tr '\\t' ' '", "192.0.2.97 third")},
		{[]string{"--host-rm", "other:192.0.2.99"}, within("grep -c other /etc/hosts", "0")},
		{[]string{"--hostname", "i{{.Task.Slot}}"}, within("hostname", "i1")},
		{[]string{"--image", "busybox:second"}, box("{{.Config.Image}}", "busybox:second")},
		{[]string{"--init=false"}, within("tr '\\0' '\\n' </proc/1/cmdline | grep -c init", "0")},
		{[]string{"--isolation", "default"}, box("{{.HostConfig.Isolation}}", "default")},
		{[]string{"--label-add", "add=2"}, spec(`{{index .Spec.Labels "add"}}`, "2")},
		{[]string{"--label-rm", "drop"}, spec(`{{index .Spec.Labels "drop"}}`, "")},
		{[]string{"--limit-cpu", "0.6"}, within(cgroup("cpu/cpu.cfs_quota_us", "cpu.max"), "60000")},
		{[]string{"--limit-memory", "65M"}, within(cgroup("memory/memory.limit_in_bytes", "memory.max"), "68157440")},
		{[]string{"--limit-pids", "60"}, within(cgroup("pids/pids.max", "pids.max"), "60")},
		{[]string{"--log-driver", "json-file"}, box("{{.HostConfig.LogConfig.Type}}", "json-file")},
		{[]string{"--log-opt", "max-size=2m"}, box("{{.HostConfig.LogConfig.Config}}", "map[max-size:2m]")},
		{[]string{"--mount-add", "type=volume,target=/vol"}, within("grep -c ' /vol ' /proc/mounts", "1")},
		{[]string{"--mount-rm", "/scratch"}, within("grep -c ' /scratch ' /proc/mounts", "0")},
		{[]string{"--network-add", "over2"}, box("{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}", "over2")},
		{[]string{"--network-rm", "over"}, spec("{{len .Spec.TaskTemplate.Networks}}", "1")},
		{[]string{"--no-resolve-image"}, seen{}},
		{[]string{"--oom-score-adj", "101"}, within("cat /proc/1/oom_score_adj", "101")},
		{[]string{"--placement-pref-add", "spread=node.labels.row"}, spec("{{(index .Spec.TaskTemplate.Placement.Preferences 0).Spread.SpreadDescriptor}}", "node.labels.row")},
		{[]string{"--placement-pref-rm", "spread=node.labels.rack"}, spec("{{len .Spec.TaskTemplate.Placement.Preferences}}", "1")},
		{[]string{"--publish-add", "published=8086,target=81,mode=host"}, box(`{{(index (index .NetworkSettings.Ports "81/tcp") 0).HostPort}}`, "8086")},
		{[]string{"--publish-rm", "published=8085,target=80,mode=host"}, box("{{len .NetworkSettings.Ports}}", "1")},
		{[]string{"--quiet"}, seen{}},
		{[]string{"--read-only=false"}, box("{{.HostConfig.ReadonlyRootfs}}", "false")},
		{[]string{"--replicas", "1"}, spec("{{.Spec.Mode.Replicated.Replicas}}", "1")},
		{[]string{"--replicas-max-per-node", "3"}, spec(inspected("Placement.MaxReplicas"), "3")},
		{[]string{"--reserve-cpu", "0.2"}, spec(inspected("Resources.Reservations.NanoCPUs"), "200000000")},
		{[]string{"--reserve-memory", "9M"}, spec(inspected("Resources.Reservations.MemoryBytes"), "9437184")},
		{[]string{"--restart-condition", "on-failure"}, spec(inspected("RestartPolicy.Condition"), "on-failure")},
		{[]string{"--restart-delay", "1s"}, spec(inspected("RestartPolicy.Delay"), "1s")},
		{[]string{"--restart-max-attempts", "6"}, spec(inspected("RestartPolicy.MaxAttempts"), "6")},
		{[]string{"--restart-window", "4s"}, spec(inspected("RestartPolicy.Window"), "4s")},
		{[]string{"--secret-add", "source=word2,target=w2,uid=9"}, within("cat /run/secrets/w2", "another secret")},
		{[]string{"--secret-rm", "word"}, within("ls /run/secrets", "w2")},
		{[]string{"--stop-grace-period", "8s"}, box("{{.Config.StopTimeout}}", "8")},
		{[]string{"--stop-signal", "SIGTERM"}, box("{{.Config.StopSignal}}", "SIGTERM")},
		{[]string{"--sysctl-add", "net.ipv4.ip_default_ttl=63"}, within("cat /proc/sys/net/ipv4/ip_default_ttl", "63")},
		{[]string{"--sysctl-rm", "net.core.somaxconn"}, box("{{len .HostConfig.Sysctls}}", "1")},
		{[]string{"--tty=false"}, box("{{.Config.Tty}}", "false")},
		{[]string{"--ulimit-add", "core=0:0"}, within("awk '/core file/ {print $5, $6}' /proc/1/limits", "0 0")},
		{[]string{"--ulimit-rm", "nofile"}, box("{{len .HostConfig.Ulimits}}", "1")},
		{[]string{"--user", "9:10"}, within("id -u; id -g", "9\n10")},
		{[]string{"--with-registry-auth"}, seen{}},
		{[]string{"--workdir", "/tmp"}, within("pwd", "/tmp")},
	})
}

// elsewhere are the flags of "service update" that other tests or other services give.
var elsewhere = []string{
	"--health-start-interval", // clients up to 29 do not send it
	"--credential-spec", "--max-concurrent", "--no-healthcheck", "--rollback",
	"--rollback-delay", "--rollback-failure-action", "--rollback-max-failure-ratio", "--rollback-monitor", "--rollback-order", "--rollback-parallelism",
	"--update-delay", "--update-failure-action", "--update-max-failure-ratio", "--update-monitor", "--update-parallelism",
}

// clientFlags are the flags that the client's own help lists for a command.
func clientFlags(n *node, command string) (flags []string) {
	for line := range strings.Lines(n.Docker("service", command, "--help")) {
		for _, word := range strings.Fields(line)[:min(2, len(strings.Fields(line)))] {
			if strings.HasPrefix(word, "--") {
				flags = append(flags, strings.TrimRight(word, ")"))
			}
		}
	}
	return flags
}

// allGiven checks that rows give each flag of the client.
func allGiven(t *testing.T, n *node, command string, rows []flagRow, others []string) {
	t.Helper()
	given := slices.Clone(others)
	for _, row := range rows {
		for _, arg := range row.args {
			name, _, _ := strings.Cut(arg, "=")
			given = append(given, name)
		}
	}
	flags := clientFlags(n, command)
	if len(flags) < 50 {
		t.Errorf("the help of service %s lists only %v", command, flags)
	}
	for _, flag := range flags {
		if !slices.Contains(given, flag) {
			t.Errorf("the flag %s of service %s is in no row", flag, command)
		}
	}
}

// allArgs are those of all rows.
func allArgs(rows []flagRow) (args []string) {
	for _, row := range rows {
		args = append(args, row.args...)
	}
	return args
}

func TestEachFlagOfServicesHasItsEffect(t *testing.T) {
	t.Parallel()
	n := prepare(t, kit.Options{Netns: wired(t, 1).all[0], LiveRestore: true, Config: map[string]any{
		"live-restore": true, "node-generic-resources": []string{"gpu=2", "ssd=3"},
	}})
	n.Docker("swarm", "init", "--advertise-addr", address(0))
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "env"), []byte("TWO=2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.Docker("tag", image, "busybox:second")
	for _, name := range []string{"over", "over2"} {
		n.Docker("network", "create", "-d", "overlay", name)
	}
	for name, text := range map[string]string{"conf": "a config", "conf2": "another config"} {
		n.DockerWith(strings.NewReader(text), "config", "create", name, "-")
	}
	for name, text := range map[string]string{"word": "a secret", "word2": "another secret"} {
		n.DockerWith(strings.NewReader(text), "secret", "create", name, "-")
	}

	var all []flagRow
	created := creates(dir)
	for service, rows := range created {
		all = append(all, rows...)
		args := append([]string{"service", "create"}, allArgs(rows)...)
		if service != "most" {
			args = append(args, "-d", "--name", service, "--entrypoint", "sh -c")
		}
		n.Docker(append(args, image, patient)...)
	}
	allGiven(t, n, "create", all, nil)
	check := func(service string, rows []flagRow) {
		t.Helper()
		for _, row := range rows {
			if got, ok := row.soon(n, service); !ok {
				t.Errorf("service %s with %v: %s %s: %q, want %q", service, row.args, row.where, row.what, got, row.want)
			}
		}
	}
	n.await("most", 1)
	for service, rows := range created {
		check(service, rows)
	}

	rows := updates()
	allGiven(t, n, "update", rows, elsewhere)
	before := n.running("most")
	n.Docker(append(append([]string{"service", "update"}, allArgs(rows)...), "most")...)
	defer func() {
		if t.Failed() {
			t.Log(n.Docker("service", "ps", "--no-trunc", "most"))
		}
	}()
	kit.Eventually(t, "the task is replaced", func() bool {
		after := n.running("most")
		return len(after) == 1 && after[0].ID != before[0].ID
	})
	check("most", rows)
}
