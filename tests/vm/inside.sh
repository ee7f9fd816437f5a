#!/bin/bash
# What happens inside the virtual machine, as root, once it is up; prints to the console and powers
# off. Each line that begins with "ok" or "FAILED" is a check; the last is "end".
exec >/dev/console 2>&1
export HERMES_SOCKET=/run/hermes/hermes.sock PATH=/usr/sbin:/usr/bin

fail() {
    echo "FAILED: $*"
    journalctl --no-pager -n 40 -u hermesd -u hermesd.socket
    echo end
    systemctl --no-block poweroff -f
    exit 1
}
check() { # what, command...
    "${@:2}" >/tmp/out 2>&1 || fail "$1: $(tail -c 2000 /tmp/out)"
    echo "ok: $1 ($SECONDS s)"
}
property() { systemctl show hermesd --property "$1" --value; }
embed() { hermesctl embed demo "A cat sleeps on the warm sofa." --json; }
waited() { # command...: until it succeeds
    for _ in {1..120}; do
        "$@" && return
        sleep 0.5
    done
    return 1
}
restarted() {
    [[ $(property ActiveState) == active && $(property MainPID) != "$process" ]]
}
is_logged() { journalctl --no-pager -q -u hermesd | grep -qF "$1"; }

has_memory=false
grep -qw memory /sys/fs/cgroup/cgroup.controllers && has_memory=true
echo "kernel $(uname -r), page size $(getconf PAGESIZE), memory cgroup: $has_memory"
grep -E 'MemTotal|MemAvailable' /proc/meminfo

# Dependencies were unpacked, not installed.
check "the package installs" dpkg --force-depends -i /hermes.deb
check "the socket listens" systemctl is-active hermesd.socket
check "the service sleeps" test "$(systemctl is-active hermesd)" = inactive
mkdir -p /etc/systemd/system/hermesd.service.d
cat >/etc/systemd/system/hermesd.service.d/test.conf <<UNIT
[Service]
MemoryMax=64M
Environment=HERMES_BUDGET=48MiB
UNIT
cp -r /store/. /var/lib/hermes/
chown -R hermes:hermes /var/lib/hermes
# What is read is to be charged to who reads it.
sync
echo 3 >/proc/sys/vm/drop_caches
check "the units are read anew" systemctl daemon-reload

check "the first client starts the service" hermesctl ls
check "the service runs" systemctl is-active hermesd
ready=$(($(property ActiveEnterTimestampMonotonic) - $(property ExecMainStartTimestampMonotonic)))
cpu=$(property CPUUsageNSec)
echo "figure: start to READY $((ready / 1000)) ms; processor time until now $((cpu / 1000000)) ms"
check "a sentence is embedded" embed
echo "embedding: $(tr -d '\n' </tmp/out)"
process=$(property MainPID)
echo "figure: $(grep VmHWM "/proc/$process/status" | tr -s '\t ' ' ')"
peak=$(awk '/VmHWM/ { print $2 }' "/proc/$process/status")
check "the process stays within its budget" test "$peak" -le $((48 << 10))
if $has_memory; then
    group=/sys/fs/cgroup/system.slice/hermesd.service
    echo "figure: memory.peak $(($(cat "$group/memory.peak") >> 10)) KiB"
    check "MemoryMax= is in force" grep -qx $((64 << 20)) "$group/memory.max"
    check "nothing was killed" grep -qx 'oom_kill 0' "$group/memory.events"
else
    check "the missing memory cgroup is told" is_logged "this kernel lacks a memory cgroup"
fi
is_logged "memory pressure is" || fail "nothing is said of memory pressure"
journalctl --no-pager -q -o cat -u hermesd | grep -E "memory pressure is|lacks"

mkdir /etc/hermes/hermesd.toml.d
echo 'drain = 60' >/etc/hermes/hermesd.toml.d/50-test.conf
check "a reload" systemctl reload hermesd
check "a reload is told" waited is_logged "the config is reloaded"
check "a reload keeps the process" test "$(property MainPID)" = "$process"

kill -9 "$process"
check "a killed service is there again" waited restarted
check "and answers" embed

# A request of many texts runs while the service is stopped.
hermesctl embed demo sentence{1..40} --json >/tmp/drained 2>&1 &
client=$!
sleep 1
check "the service stops" systemctl stop hermesd.socket hermesd.service
check "the request that ran was answered" wait "$client"
check "it drained" is_logged "SIGTERM: what runs has"

rm -r /etc/hermes/hermesd.toml.d
check "the package is purged" dpkg --purge hermes
for left in /usr/bin/hermesd /etc/hermes /var/lib/hermes /run/hermes \
    /etc/systemd/system/sockets.target.wants/hermesd.socket; do
    check "$left is gone" test ! -e "$left"
done
echo end
systemctl --no-block poweroff -f
