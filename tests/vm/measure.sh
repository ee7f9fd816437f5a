#!/bin/bash
# What record.sh measures inside the virtual machine; prints to the console and powers off.
exec >/dev/console 2>&1
export PATH=/usr/sbin:/usr/bin

finish() {
    echo end
    systemctl --no-block poweroff -f
}
trap finish EXIT

measured() { # hermes-bench's arguments
    echo "\$ hermes-bench $*"
    hermes-bench "$1" --store /store "${@:2}" 2>/tmp/errors ||
        { echo "FAILED: $*: $(tail -n 5 /tmp/errors)" && exit 1; }
}
ahead=/sys/block/vda/queue/read_ahead_kb
dpkg --force-depends -i /hermes.deb >/dev/null 2>&1
echo "kernel $(uname -r), page size $(getconf PAGESIZE)"
grep MemTotal /proc/meminfo
echo 128 >"$ahead"

common=(--budget 64MiB --cold --no-resident)
measured pass --model demo --tokens 128 --repeat 3 "${common[@]}"
for kib in 128 4096; do
    echo "$kib" >"$ahead"
    echo "read ahead: $kib KiB"
    for source in mapped direct; do
        measured pass --model three-layers --tokens 1 --repeat 3 --source "$source" "${common[@]}"
    done
    measured forecast --model demo --tokens 4 --repeat 1
done
echo 128 >"$ahead"
measured pass --model bert-large --tokens 16 --repeat 1 "${common[@]}"
measured pass --model bert-large --tokens 128 --repeat 1 --source direct "${common[@]}"
