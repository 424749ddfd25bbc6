#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Boots a Debian with its own systemd in namespaces, installs Holdfast there as
# the README has it, and walks through what docs/systemd.md promises. It prints a
# line for each promise, and ends with 1 if one is broken. The folder is made with
# debootstrap if it is not there, and stays for the next call.
#
# usage, as root: real.sh RELEASE FOLDER     such as: real.sh trixie /var/tmp/trixie
set -euo pipefail
release=$1 root=$(realpath -m "$2")
cd "$(dirname "$0")/../.."

[ -e "$root/sbin/init" ] || debootstrap --variant=minbase \
	--include=systemd,systemd-sysv,dbus,runc,iproute2,nftables,procps,busybox-static,kmod "$release" "$root"
make install DESTDIR="$root" >/dev/null
rm -rf "$root/etc/holdfast" "$root/var/lib/holdfast"

group=/sys/fs/cgroup/unified
[ -e $group ] || group=/sys/fs/cgroup
group=$group/holdfast-real-$$
mkdir "$group"
init=
broken=0

boot() {
	(
		echo "$BASHPID" >"$group/cgroup.procs"
		exec unshare --pid --fork --kill-child --mount --uts --ipc --net --cgroup --propagation private bash -euc '
			mount --bind "$0" "$0"
			cd "$0"
			mount -t proc proc proc
			mount -t sysfs sys sys
			mount -t cgroup2 none sys/fs/cgroup
			mount -t tmpfs run run
			mount -t tmpfs dev dev
			mkdir dev/pts dev/shm
			mount -t devpts -o newinstance,ptmxmode=0666 pts dev/pts
			ln -s pts/ptmx dev/ptmx
			ln -s /proc/self/fd dev/fd
			for n in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0"; do
				set -- $n
				mknod -m 666 "dev/$1" c "$2" "$3"
			done
			pivot_root . mnt
			umount -l /mnt
			exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=other /sbin/init --log-target=journal
		' "$root" </dev/null >/dev/null 2>&1
	) &
	unshare=$!
	for _ in $(seq 300); do
		init=$(pgrep -P "$unshare" || true)
		if [ -n "$init" ] && inside systemctl is-system-running --wait >/dev/null 2>&1; then
			return
		fi
		read -rt 0.2 <> <(:) || true
	done
	echo "systemd does not come up" >&2
	exit 1
}

inside() {
	nsenter -t "$init" -m -u -i -n -p -C env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "$@"
}

# check says whether what is there is what should be.
check() {
	if [ "$2" = "$3" ]; then
		echo "kept    $1"
	else
		echo "BROKEN  $1: got '$2', want '$3'"
		broken=1
	fi
}

down() {
	inside systemctl "$1" || true
	wait "$unshare" 2>/dev/null || true
}

clean() {
	[ -z "${unshare:-}" ] || kill -9 "$unshare" 2>/dev/null || true
	wait
	find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
}
trap clean EXIT

boot
echo "$(inside systemctl --version | head -1)"
inside systemd-sysusers /usr/local/lib/sysusers.d/holdfast.conf 2>/dev/null
inside mkdir -p /etc/holdfast
echo '{"live-restore": true}' >"$root/etc/holdfast/daemon.json"
inside systemctl daemon-reload
inside systemctl enable --now holdfast 2>/dev/null
check "the socket is the group's" "$(inside stat -c '%a %G' /run/holdfast/holdfast.sock)" "660 docker"
mkdir -p "$root/root/image/bin"
cp "$root/bin/busybox" "$root/root/image/bin/"
ln -sf busybox "$root/root/image/bin/sh"
ln -sf busybox "$root/root/image/bin/sleep"
tar -C "$root/root/image" -c . | inside holdfast import - box >/dev/null
inside holdfast run -d --name sleeps --restart unless-stopped box sleep 100000 >/dev/null
inside holdfast run -d --name traps --stop-signal USR1 box sh -c 'trap "echo bye; exit 7" USR1; trap "" TERM; while :; do sleep 0.1; done' >/dev/null
both='{{.State.Pid}} {{.State.StartedAt}}'
before=$(inside holdfast inspect -f "$both" sleeps traps)
shims=$(inside pgrep -fc '^holdfast-shim' || true)
for _ in $(seq 100); do
	[ "$(inside sh -c 'wc -l </sys/fs/cgroup/system.slice/holdfast-shims.scope/cgroup.procs')" = "$shims" ] && break
done
check "the shims are in a scope of their own" "$(inside sh -c 'wc -l </sys/fs/cgroup/system.slice/holdfast-shims.scope/cgroup.procs')" "$shims"
check "the unit holds the daemon alone" "$(inside sh -c 'wc -l </sys/fs/cgroup/system.slice/holdfast.service/cgroup.procs')" 1

for _ in $(seq 7); do
	inside systemctl kill -s KILL holdfast
	inside systemctl restart holdfast
done
check "killed and restarted seven times, the API is there" "$(inside systemctl is-active holdfast holdfast.socket | tr '\n' ' ')" "active active "
check "killed and restarted seven times, the containers have not noticed" "$(inside holdfast inspect -f "$both" sleeps traps)" "$before"

inside holdfast run -d --name ends box sh -c 'trap "exit 42" TERM; while :; do sleep 0.1; done' >/dev/null
id=$(inside holdfast inspect -f '{{.Id}}' ends)
inside systemctl stop holdfast.socket holdfast 2>/dev/null
process=$(inside head -1 "/sys/fs/cgroup/system.slice/holdfast-$id.scope/cgroup.procs")
inside pkill -9 -f "^holdfast-shim $id"
inside kill -TERM "$process"
inside systemctl start holdfast
code=42
inside sh -c 'systemctl show -p FileDescriptorStorePreserve holdfast' | grep -q =yes || code=255 # before release 254
check "shim and container ended while the service was stopped: the exit code" "$(inside holdfast wait ends)" $code
check "nothing was warned of in the journal with a time of its own" "$(inside journalctl -u holdfast -o cat | grep -c time=)" 0

echo '{"live-restore": true, "hosts": ["unix:///run/second.sock"]}' >"$root/etc/holdfast/daemon.json"
inside systemctl restart holdfast
check "hosts of daemon.json beside the socket" "$(inside holdfast -H unix:///run/second.sock version -f '{{.Server.Os}}')" linux

began=$(date +%s)
down reboot
took=$(($(date +%s) - began))
check "a reboot takes under 30 s" "$([ $took -lt 30 ] && echo yes || echo "$took s")" yes
boot
for _ in $(seq 100); do
	[ "$(inside holdfast inspect -f '{{.State.Status}}' sleeps)" = running ] && break
done
check "after the reboot, what was to come back runs" "$(inside holdfast inspect -f '{{.State.Status}}' sleeps)" running
check "after the reboot, the exit code of a stop by its own signal" "$(inside holdfast inspect -f '{{.State.Status}} {{.State.ExitCode}}' traps)" "exited 7"
check "after the reboot, its last words" "$(inside holdfast logs traps)" bye
ended=$(date +%s -d "$(inside holdfast inspect -f '{{.State.FinishedAt}}' traps)")
check "after the reboot, the time of its end" "$([ "$ended" -ge "$began" ] && [ "$ended" -le $((began + took)) ] && echo then)" then
down poweroff
exit $broken
