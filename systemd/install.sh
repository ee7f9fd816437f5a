#!/usr/bin/env bash
# Puts the units, the user, the folders and an example config in place: install.sh DESTDIR PREFIX
# SYSCONFDIR. A config that is there is kept. `make install` runs it.
set -euo pipefail

cd "$(dirname "$0")"
destination=$1 prefix=$2 sysconfdir=$3

put() { # file, folder, name
    install -d "$destination$2"
    # The files name the programs where PREFIX is /usr/local.
    sed "s|/usr/local/bin/|$prefix/bin/|" "$1" >"$destination$2/$3.new"
    chmod 644 "$destination$2/$3.new"
    mv "$destination$2/$3.new" "$destination$2/$3"
}

put hermesd.service "$prefix/lib/systemd/system" hermesd.service
put hermesd.socket "$prefix/lib/systemd/system" hermesd.socket
put hermes.sysusers.conf "$prefix/lib/sysusers.d" hermes.conf
put hermes.tmpfiles.conf "$prefix/lib/tmpfiles.d" hermes.conf
put memory.conf.example "$prefix/share/doc/hermes" memory.conf.example
put hermesd.toml "$prefix/share/doc/hermes" hermesd.toml.example
[[ -e $destination$sysconfdir/hermes/hermesd.toml ]] ||
    put hermesd.toml "$sysconfdir/hermes" hermesd.toml

if [[ -z $destination ]]; then
    echo "Next: systemd-sysusers && systemd-tmpfiles --create"
    echo "      systemctl daemon-reload && systemctl enable --now hermesd.socket"
fi
