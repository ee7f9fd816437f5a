#!/bin/bash
# Runs the test programs of kernel.sh inside the virtual machine, as root; prints to the console and
# powers off. A program's line begins with "ok" or "FAILED"; the last line is "end".
exec >/dev/console 2>&1
export PATH=/usr/sbin:/usr/bin
# shellcheck source=/dev/null
. /environment

echo "kernel $(uname -r), $(nproc) cores, up after $(cut -d . -f 1 /proc/uptime) s"
echo "pages of $(($(getconf PAGESIZE) >> 10)) KiB"
grep MemTotal /proc/meminfo
grep -m 1 Features /proc/cpuinfo

while read -r name program arguments; do
    started=$SECONDS
    # shellcheck disable=SC2086 # words
    "$program" $arguments >/tmp/out 2>&1 </dev/null
    code=$?
    counts=$(sed -n "s/^test result: [A-Za-z]*\. \(.* passed; [0-9]* failed\);.*/\1/p" /tmp/out)
    result="$name: ${counts:-no result}, $((SECONDS - started)) s"
    if ((code == 0)); then
        echo "ok: $result"
    else
        echo "FAILED: $result (exit code $code)"
        sed '/^test .* \.\.\. ok$/d' /tmp/out
        dmesg --level=emerg,alert,crit,err | tail -n 5
    fi
done </tests
echo end
systemctl --no-block poweroff -f
