#!/usr/bin/env bash
# Run the service as its users do, under a systemd of its own: tests/units.sh, as root. It takes the
# release programs that are built, or those in HERMES_BIN, and the sentence model.
#
# systemd is this machine's, process 1 in namespaces, on a copy of this machine's files that is
# gone afterwards (an overlay): what is installed, enabled and broken there is nobody's.
# Exit code 3: this machine does not let us.
set -euo pipefail

# What happens inside, as root. Lines that begin with "ok" or "FAILED" are checks.
# shellcheck disable=SC2317 # "check" and "eventually" call the others
inside() {
    local process client text number texts=()
    export HERMES_SOCKET=/run/hermes/hermes.sock
    property() { systemctl show hermesd --property "$1" --value; }
    is_logged() { journalctl --no-pager -q -u hermesd | grep -F "$1"; }
    embed() { hermesctl embed demo "A cat sleeps on the warm sofa." --json; }
    check() { # what, command...
        if ! "${@:2}" >/tmp/out 2>&1; then
            echo "FAILED: $1: $(tail -c 2000 /tmp/out)"
            systemctl --no-pager status hermesd hermesd.socket || true
            journalctl --no-pager -n 40
            exit 1
        fi
        echo "ok: $1"
    }
    eventually() { # command...
        for _ in {1..600}; do
            "$@" && return
            sleep 0.1
        done
        return 1
    }
    is_another() { [[ $(property ActiveState) == active && $(property MainPID) != "$process" ]]; }

    systemd-sysusers
    systemd-tmpfiles --create hermes.conf
    chown -R hermes:hermes /var/lib/hermes
    check "the socket is enabled" systemctl enable --now hermesd.socket
    check "nobody asked, nothing runs" test "$(property ActiveState)" = inactive
    check "the first client starts the service" hermesctl ls
    # Type=notify: it is active once it has said READY.
    check "it is ready" test "$(property ActiveState)" = active
    process=$(property MainPID)
    check "it runs as its user" test "$(stat -c %U "/proc/$process")" = hermes
    embed >/tmp/first || true
    answers() { embed >/tmp/again && [[ -s /tmp/first ]] && cmp /tmp/first /tmp/again; }
    check "a sentence is embedded" answers
    tells_status() { grep -q "loaded: demo" <<<"$(property StatusText)"; }
    check "the status tells of the model" eventually tells_status

    echo 'drain = 60' >/etc/hermes/hermesd.toml
    check "reloads" systemctl reload hermesd
    check "a reload is told" eventually is_logged "the config is reloaded"
    check "a reload keeps the process" test "$(property MainPID)" = "$process"

    kill -9 "$process"
    check "it is there again when killed" eventually is_another
    check "and answers the same" answers

    process=$(property MainPID)
    kill -STOP "$process"
    check "the watchdog starts it anew when it hangs" eventually is_another
    check "it was the watchdog" is_logged "Watchdog timeout"
    check "and answers the same again" answers

    # A port, by the socket unit alone.
    mkdir -p /etc/systemd/system/hermesd.socket.d
    printf '[Socket]\nListenStream=127.0.0.1:8000\n' >/etc/systemd/system/hermesd.socket.d/port.conf
    # As an old systemd has the list of system calls, which does not know this set.
    sed '/^SystemCallFilter=@system-service/d' /usr/local/lib/systemd/system/hermesd.service \
        >/etc/systemd/system/hermesd.service
    systemctl daemon-reload
    systemctl stop hermesd.socket hermesd.service
    check "a port is opened" systemctl start hermesd.socket
    scrapes() {
        curl -sf http://127.0.0.1:8000/metrics |
            grep -F 'hermes_listening{address="tcp:127.0.0.1:8000"} 1'
    }
    check "a client of the port starts the service, and is answered" scrapes
    check "and answers the same by the parts of @system-service" answers
    has_no_network() { ! nsenter --target "$(property MainPID)" --net curl -s http://127.0.0.1:8000; }
    check "the service has no network of its own" has_no_network
    echo 'listen = ["tcp:127.0.0.1:8001"]' >/etc/hermes/hermesd.toml
    systemctl restart hermesd || true
    check "a port that the unit denies is told with what to do" eventually \
        is_logged "as a service, hermesd takes ports from hermesd.socket"
    echo 'drain = 60' >/etc/hermes/hermesd.toml
    rm /etc/systemd/system/hermesd.service
    systemctl daemon-reload
    systemctl reset-failed hermesd
    check "and answers once more" eventually answers

    # Asked before the service is told to stop, answered while it does.
    text=$(printf 'The weights of the model stream through a window. %.0s' {1..40})
    for number in {1..60}; do
        texts+=("$number. $text")
    done
    hermesctl embed demo "${texts[@]}" --json >/tmp/drained 2>&1 &
    client=$!
    is_busy() {
        curl -s --unix-socket "$HERMES_SOCKET" http://localhost/metrics |
            grep -q '^hermes_waiting_requests [1-9]'
    }
    check "is busy" eventually is_busy
    check "stops" systemctl stop hermesd.socket hermesd.service
    was_answered() { wait "$client" || { tail -c 500 /tmp/drained && false; }; }
    check "what ran was answered" was_answered
    check "it was drained" is_logged "SIGTERM: what runs has"
    check "is disabled" systemctl disable hermesd.socket
    check "the socket is gone" test ! -e "$HERMES_SOCKET"
    echo "end"
}
if [[ ${1:-} == --inside ]]; then
    inside
    exit
fi

# Process 1 of the namespaces: makes the mounts that systemd expects of a container.
if [[ ${1:-} == --boot ]]; then
    root=$2
    mount --make-rprivate /
    mount --bind "$root" "$root"
    cd "$root"
    mount -t proc proc proc
    # Read-only, by which systemd knows that the kernel's settings are not its own.
    mount --bind proc/sys proc/sys
    mount -o remount,bind,ro proc/sys
    mount -t sysfs -o ro sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount -t tmpfs -o mode=755 tmpfs dev
    for device in null zero full random urandom tty; do
        touch "dev/$device"
        mount --bind "/dev/$device" "dev/$device"
    done
    ln -s /proc/self/fd dev/fd
    ln -s pts/ptmx dev/ptmx
    mkdir dev/shm dev/pts
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
    for folder in dev/shm run tmp; do
        mount -t tmpfs tmpfs "$folder"
    done
    mkdir -p .outside
    pivot_root . .outside
    umount -l /.outside
    exec env -i container=hermes PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        /lib/systemd/systemd --unit=hermes-test.service --log-target=journal --show-status=0
fi

cd "$(dirname "$0")/.."
unable() {
    echo "$*" >&2
    exit 3
}
((EUID == 0)) || unable "run as root: mounts are made"
[[ -x /lib/systemd/systemd ]] || unable "this machine has no systemd"
groups=$(findmnt -n -t cgroup2 -o TARGET | head -n 1)
[[ -n $groups ]] || unable "this machine has no cgroup2 mount"
programs=$(realpath "${HERMES_BIN:-${CARGO_TARGET_DIR:-target}/release}")
models=${HERMES_MODELS:-models}
tools/fetch_models.sh "$models" paraphrase-minilm-l3

work=$(mktemp -d)
group=$groups/hermes-test-$$
clean() {
    [[ ! -d $group ]] || find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
    umount -q "$work/files/root" "$work/files" || true
    rm -rf --one-file-system "$work"
}
trap clean EXIT
mkdir "$work/files" "$group" || unable "this machine's cgroups are not ours to divide"
mount -t tmpfs tmpfs "$work/files" || unable "this machine lets nobody mount"
mkdir "$work/files"/{upper,work,root}
root=$work/files/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/files/upper,workdir=$work/files/work" \
    "$root" || unable "this machine's files cannot be laid over"

rm -rf "$root"/{var/lib/hermes,etc/hermes,usr/local/bin/hermes*}
make --no-print-directory -s install DESTDIR="$root" BUILT="$programs" >/dev/null
folder=$models/paraphrase-minilm-l3
"$programs/hermes-shard" build "$folder/paraphrase-MiniLM-L3-v2.onnx" --name demo \
    --store "$root/var/lib/hermes" --tokenizer "$folder/tokenizer.json" --json >/dev/null
cp "$0" "$root/hermes-test"
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
units=$root/etc/systemd/system
mkdir -p "$units/hermesd.service.d"
cat >"$units/hermesd.service.d/test.conf" <<UNIT
[Service]
WatchdogSec=3
Environment=HERMES_BUDGET=48MiB
UNIT
cat >"$units/hermes-test.service" <<UNIT
[Unit]
SuccessAction=exit-force
FailureAction=exit-force

[Service]
Type=oneshot
ExecStart=/hermes-test --inside
StandardOutput=file:/hermes-test.log
StandardError=inherit
TimeoutStartSec=600
UNIT
: >"$root/hermes-test.log"
# shellcheck disable=SC2016 # the inner shell expands them
timeout --kill-after=5 900 bash -c 'echo $$ >"$0/cgroup.procs" && exec unshare --mount --pid --fork \
    --kill-child --cgroup --uts --ipc --net "$1" --boot "$2"' "$group" "$0" "$root" || true
cat "$root/hermes-test.log"
grep -qx end "$root/hermes-test.log"
