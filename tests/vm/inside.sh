#!/bin/bash
# What happens inside the virtual machine, as root, once it is up; prints to the console and powers
# off. Each line that begins with "ok" or "FAILED" is a check; the last is "end".
exec >/dev/console 2>&1
export HERMES_SOCKET=/run/hermes/hermes.sock PATH=/usr/sbin:/usr/bin

fail() {
    echo "FAILED: $*"
    grep -E 'MemAvailable|^Cached' /proc/meminfo
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
    for _ in {1..240}; do
        "$@" && return
        sleep 0.5
    done
    return 1
}
restarted() {
    [[ $(property ActiveState) == active && $(property MainPID) != "$process" ]]
}
is_logged() { journalctl --no-pager -q -u hermesd | grep -qF "$1"; }
# What the process holds or held, in KiB.
held() { awk "/^$1:/ { print \$2 }" "/proc/$process/status"; }
pinned() { hermesctl ps --json | grep -o '"pinned_bytes":[0-9]*' | cut -d: -f2; }
nothing_is_pinned() { test "$(pinned)" -eq 0; }
ask() { hermesctl infer big --request /request --json; }
pins_come_back() { ask && test "$(pinned)" -gt $((64 << 20)); }
settings() { # lines of [Service]; in force at the next start
    mkdir -p /etc/systemd/system/hermesd.service.d
    (echo "[Service]" && printf '%s\n' "$@") >/etc/systemd/system/hermesd.service.d/test.conf
    systemctl daemon-reload
}
# The group of the service, of version 2 with and without a memory controller.
group=/sys/fs/cgroup/system.slice/hermesd.service

has_memory=false
grep -qw memory /sys/fs/cgroup/cgroup.controllers && has_memory=true
echo "kernel $(uname -r), page size $(getconf PAGESIZE), memory cgroup: $has_memory"
grep -E 'MemTotal|MemAvailable' /proc/meminfo

# Dependencies were unpacked, not installed.
check "the package installs" dpkg --force-depends -i /hermes.deb
check "the socket listens" systemctl is-active hermesd.socket
check "the service sleeps" test "$(systemctl is-active hermesd)" = inactive
mv /store/* /var/lib/hermes/
chown -R hermes:hermes /var/lib/hermes
# What is read is to be charged to who reads it.
sync
echo 3 >/proc/sys/vm/drop_caches
check "the units are read anew" settings MemoryMax=64M Environment=HERMES_BUDGET=48MiB

check "the first client starts the service" hermesctl ls
check "the service runs" systemctl is-active hermesd
ready=$(($(property ActiveEnterTimestampMonotonic) - $(property ExecMainStartTimestampMonotonic)))
cpu=$(property CPUUsageNSec)
echo "figure: start to READY $((ready / 1000)) ms; processor time until now $((cpu / 1000000)) ms"
process=$(property MainPID)
stays_within() { # what was asked
    echo "figure: VmHWM $(held VmHWM) KiB after $1"
    check "the process stays within its budget" test "$(held VmHWM)" -le $((48 << 10))
    if $has_memory; then
        echo "figure: memory.peak $(($(cat "$group/memory.peak") >> 10)) KiB"
        check "nothing was killed" grep -qx 'oom_kill 0' "$group/memory.events"
    fi
}
check "a sentence is embedded" embed
echo "answer of demo: $(tr -d '\n' </tmp/out)"
stays_within "a sentence"
if $has_memory; then
    check "MemoryMax= is in force" grep -qx $((64 << 20)) "$group/memory.max"
else
    check "the missing memory cgroup is told" is_logged "this kernel lacks a memory cgroup"
fi
is_logged "memory pressure is" || fail "nothing is said of memory pressure"
journalctl --no-pager -q -o cat -u hermesd | grep -E "memory pressure is|lacks"

check "the large model is four times MemoryMax=" \
    test "$(du -sm /var/lib/hermes/big | cut -f 1)" -gt 256
check "the large model answers" hermesctl infer big --request /request --json
echo "answer of big: $(tr -d '\n' </tmp/out)"
stays_within "the large model"
check "the process is the same" test "$(property MainPID)" = "$process"
check "the large model is unloaded" hermesctl unload big

mkdir /etc/hermes/hermesd.toml.d
echo 'drain = 60' >/etc/hermes/hermesd.toml.d/50-test.conf
check "a reload" systemctl reload hermesd
check "a reload is told" waited is_logged "the config is reloaded"
check "a reload keeps the process" test "$(property MainPID)" = "$process"

kill -9 "$process"
check "a killed service is there again" waited restarted
check "and answers" embed

# Threads stand still, as by a deadlock or a disk that does not answer: those in a group of their own.
freeze() { # name
    process=$(property MainPID)
    mkdir -p "$group/frozen"
    echo threaded >"$group/frozen/cgroup.type"
    for thread in /proc/"$process"/task/*; do
        if [[ $(<"$thread/comm") == "$1" ]]; then
            echo "${thread##*/}" >"$group/frozen/cgroup.threads" && echo 1 >"$group/frozen/cgroup.freeze"
        fi
    done
    grep -q . "$group/frozen/cgroup.threads"
}
check "a shorter watchdog" settings MemoryMax=64M Environment=HERMES_BUDGET=48MiB WatchdogSec=20
systemctl restart hermesd
check "the service answers" embed
check "the engine is frozen" freeze engine
embed >/tmp/hung 2>&1 &
client=$!
check "the event loop still answers" hermesctl ls
check "the watchdog starves" waited is_logged "the watchdog is not fed"
check "a service whose engine hangs is there again" waited restarted
check "it was the watchdog" is_logged "Watchdog timeout"
wait "$client"
check "who waited was told" test $? -ne 0
check "and answers" embed
check "the event loop is frozen" freeze hermesd
check "a service whose event loop hangs is there again" waited restarted
check "and answers" embed

# Others come to need the memory, while requests go on.
check "a larger budget" settings Environment=HERMES_BUDGET=160MiB
systemctl restart hermesd
check "its weights stay" pins_come_back
process=$(property MainPID)
before=$(held VmRSS)
since=$(date +%s)
is_pressed() { journalctl --no-pager -q -u hermesd --since "@$since" | grep -F "memory pressure: $1"; }
holds_less() { test "$(held VmRSS)" -lt $((before - (48 << 10))); }
mkdir /eaten
mount -t tmpfs -o size=100% eaten /eaten
touch /eating
(while [[ -e /eating ]]; do ask; done >/dev/null 2>&1) &
for _ in {1..400}; do
    is_pressed "pins after none" && break
    available=$(awk '/MemAvailable/ { print $2 }' /proc/meminfo)
    # Little is short enough; with none the kernel would kill somebody.
    if ((available < 32 << 10)); then sleep 0.5; else head -c 4M /dev/zero >>/eaten/file; fi
done
rm /eating
echo "figure: $(awk '/MemAvailable/ { print $2 }' /proc/meminfo) KiB available at the sign"
check "the sign is logged" is_pressed "pins after none"
check "nothing is pinned" waited nothing_is_pinned
# What the pass that runs still uses goes with it.
check "the process holds less" waited holds_less
echo "figure: VmRSS $before KiB before, $(held VmRSS) KiB after"
check "who asks is answered" ask
rm /eaten/file
check "calm is told" waited is_pressed "none after pins"
check "pins come back" waited pins_come_back
check "nothing was restarted" test "$(property MainPID)" = "$process"

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
