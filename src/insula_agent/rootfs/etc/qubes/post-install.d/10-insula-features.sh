#!/bin/sh
# Tells what this system is and which services it has, after packages changed (qubes.PostInstall).
set -- qrexec=1 vmexec=1 "os=$(uname -s)"

release=${INSULA_OS_RELEASE:-/etc/os-release}
while IFS='=' read -r key value; do
    value=${value#[\"\']}
    value=${value%[\"\']}
    case $key in
    ID) set -- "$@" "os-distribution=$value" ;;
    ID_LIKE) set -- "$@" "os-distribution-like=$value" ;;
    VERSION_ID) set -- "$@" "os-version=$value" ;;
    SUPPORT_END) set -- "$@" "os-eol=$value" ;;
    esac
done <"$release"

# A qube that keeps only /rw has services of its own there; the others are its template's.
persistence=full
read -r persistence 2>/dev/null </run/insula/keys/qubes-vm-persistence || true
case $persistence in
rw-only) folder=/usr/local/etc/qubes-rpc ;;
none) exit 0 ;;
*) folder=${INSULA_SERVICES:-/etc/qubes-rpc} ;;
esac
last=
for service in "$folder"/*; do
    name=${service##*/}
    name=${name%%+*}
    if [ "$name" != "$last" ] && { [ -x "$service" ] || [ -S "$service" ] || [ -L "$service" ]; }; then
        set -- "$@" "supported-rpc.$name=1"
        last=$name
    fi
done
exec qvm-features-request "$@"
