"""Starts ``tor`` in a Tor gateway: its configuration, and the folders it needs.

Clients' TCP connections reach the transparent port and their questions for names the name port by rules of the kernel
(:mod:`insula_agent.net.roles`); programs that know of Tor may use the SOCKS port. Each client qube has circuits of its
own: ``tor`` never lets connections from two addresses share one (IsolateClientAddr), and a client cannot have another's
address (MC-81). There is no control port: whoever may ask there learns the circuits and guards of all clients.

What the user adds is in :data:`USER_FOLDER` (bridges, for example). Guards are kept on the private disk, for a gateway
that chose others at each start would sooner or later choose an attacker's.

Run by path with ``python3 -I -S`` from insula-tor.service.
"""

from __future__ import annotations

import os
import pwd
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.abspath(__file__ + "/../../.."))

from insula_agent import files, programs
from insula_agent.keys import DEFAULT_FOLDER, file_name
from insula_agent.log import log
from insula_agent.net.interfaces import GATEWAY_KEY, NetworkError, parse_ip4
from insula_agent.net.roles import DNS_PORT, SOCKS_PORT, TOR_USER, TRANS_PORT, UPDATES_PORT

USER_FOLDER = "/rw/config/tor"
"""Every ``*.conf`` here is read as well."""
DATA_FOLDER = "/rw/insula-tor"
TORRC = "/run/insula/torrc"
NONLOCAL = "/proc/sys/net/ipv4/ip_nonlocal_bind"
VIRTUAL_NETWORK = "10.192.0.0/10"
"""Addresses that stand for .onion names while a client uses them; no qube has one (agent-services §12)."""


def torrc(gateway: str, *, has_user_config: bool) -> str:
    """The configuration. :param gateway: address that clients know this qube by."""
    lines = [
        f"User {TOR_USER}",
        f"DataDirectory {DATA_FOLDER}",
        "ClientOnly 1",
        "Log notice stdout",
        f"TransPort {gateway}:{TRANS_PORT} IsolateClientAddr",
        f"DNSPort {gateway}:{DNS_PORT} IsolateClientAddr",
        f"SocksPort {gateway}:{SOCKS_PORT} IsolateClientAddr IsolateSOCKSAuth",
        # Of templates' fetches: no client reaches it, and what comes by it shares no circuit with what others carry.
        f"SocksPort 127.0.0.1:{UPDATES_PORT} IsolateClientAddr IsolateSOCKSAuth",
        "ControlPort 0",
        "AutomapHostsOnResolve 1",
        f"VirtualAddrNetworkIPv4 {VIRTUAL_NETWORK}",
        "ClientRejectInternalAddresses 1",
    ]
    if has_user_config:
        lines.append(f"%include {USER_FOLDER}/*.conf")
    return "".join([f"{line}\n" for line in lines])


def prepare() -> None:
    """:raise NetworkError, KeyError, OSError:"""
    gateway = parse_ip4(files.read(f"{DEFAULT_FOLDER}/{file_name(GATEWAY_KEY)}").strip().encode())
    owner = pwd.getpwnam(TOR_USER)
    if not os.path.isdir(DATA_FOLDER):
        os.mkdir(DATA_FOLDER, 0o700)
    os.chown(DATA_FOLDER, owner.pw_uid, owner.pw_gid)
    # The address is an interface's only once there is a client.
    files.write(NONLOCAL, "1\n")
    files.write(TORRC, torrc(gateway, has_user_config=os.path.isdir(USER_FOLDER)))


def main() -> int:
    try:
        prepare()
        programs.become(["tor", "-f", TORRC])
    except (NetworkError, KeyError, OSError) as error:
        log(f"tor gateway: {error}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
