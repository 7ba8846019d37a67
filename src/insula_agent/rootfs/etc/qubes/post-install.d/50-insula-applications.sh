#!/bin/sh
# Tells which applications this system has, for the host's menus, after packages changed (qubes.PostInstall).
updateable=
read -r updateable 2>/dev/null </run/insula/keys/qubes-vm-updateable || true
[ "${INSULA_UPDATEABLE:-$updateable}" = True ] || exit 0
[ -S "${QREXEC_AGENT_SOCKET:-/var/run/qubes/qrexec-agent}" ] || exit 0
"${INSULA_SERVICES:-/etc/qubes-rpc}/qubes.GetAppmenus" | "${QREXEC_CLIENT_PATH:-qrexec-client-vm}" dom0 qubes.SyncAppMenus
