"""The firewall of a net qube, a program of its own: names of hosts are looked up here, and that may take its time.

The agent keeps a file for each client, ``FOLDER/IP``, with its rules, and a line on our standard input says that they
have changed. All of them become one text that ``nft`` takes at once; names are looked up again every :data:`REFRESH`.
The tables that the agent loads before the first client is there let nothing pass, so whatever keeps this program from
running keeps the clients from the network.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time

from insula_agent import files, programs
from insula_agent.log import log
from insula_agent.net.firewall_rules import tables
from insula_agent.net.roles import DNS_FILE
from insula_proto.firewall import FirewallError, Rule, parse_rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

REFRESH = 300.0
"""Seconds until addresses of names are looked up again."""
RETRY = 10.0
"""Seconds until a name that had none is looked up again."""
MAX_NAMES = 500
"""Host names in all rules; who has more than are left has rules that cannot be carried out."""
RESOLVER_OPTIONS = "timeout:2 attempts:2"
"""resolv.conf(5): a name server that is away keeps a change of rules waiting for eight seconds, not for twenty."""
RESOLV_CONF = "/etc/resolv.conf"


def read_clients(folder: str) -> dict[str, list[Rule] | None]:
    """Address of each client → its rules in order; None: one of them is none."""
    return {ip: _parse(ip, files.read(f"{folder}/{ip}")) for ip in sorted(os.listdir(folder)) if is_address(ip)}


def _parse(ip: str, text: str) -> list[Rule] | None:
    try:
        return parse_rules(text)
    except FirewallError as error:
        log(f"firewall of {ip}: {error}: everything is blocked")
        return None


def is_address(text: str) -> bool:
    """Whether it is an address, of either family."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, text)
        except (OSError, ValueError):
            continue
        return True
    return False


def names_in(clients: Mapping[str, Sequence[Rule] | None]) -> list[str]:
    """Host names that the rules need, each once."""
    found = {
        rule.target.text: None
        for rules in clients.values()
        for rule in rules or ()
        if rule.target is not None and rule.target.family is None
    }
    return list(found)[:MAX_NAMES]


def look_up(name: str) -> list[str]:
    """Addresses of a host; none if it has none, or nobody answers."""
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as error:
        log(f"firewall: {name}: {error}")
        return []
    return sorted({str(answer[4][0]) for answer in answers})


def dns_servers(text: str) -> list[str]:
    """Addresses in a resolv.conf(5)."""
    words = (line.split() for line in text.splitlines())
    return [parts[1] for parts in words if len(parts) > 1 and parts[0] == "nameserver" and is_address(parts[1])]


class Firewall:
    """What is loaded, and what is known of names."""

    def __init__(
        self,
        folder: str,
        load: Callable[[str], None],
        resolve: Callable[[str], list[str]] = look_up,
        clock: Callable[[], float] = time.monotonic,
        is_told: Callable[[], bool] = lambda: False,
    ) -> None:
        """``is_told()``: whether rules have changed meanwhile."""
        self._folder = folder
        self._load = load
        self._resolve = resolve
        self._clock = clock
        self._is_told = is_told
        self._addresses: dict[str, list[str]] = {}
        self._due: dict[str, float] = {}
        """When a name is to be looked up again."""
        self._loaded = ""

    def update(self) -> float:
        """Carry out what the files say now; the seconds until there is something to do again.

        First with the names that are known, and not all of the others are looked up where rules have changed meanwhile:
        so nobody's rules wait for somebody else's name server.
        """
        clients = read_clients(self._folder)
        names = names_in(clients)
        for forgotten in set(self._due).difference(names):
            del self._due[forgotten]
            self._addresses.pop(forgotten, None)
        self._apply(clients)
        for name in names:
            if self._due.get(name, 0.0) <= self._clock():
                found = self._resolve(name)
                # A name server that is away for a moment takes nobody's rules away.
                self._addresses[name] = found or self._addresses.get(name, [])
                self._due[name] = self._clock() + (REFRESH if found else RETRY)
                if self._is_told():
                    return 0.0
        if names:
            self._apply(clients)
        return max(0.0, min(self._due.values(), default=self._clock() + REFRESH) - self._clock())

    def _apply(self, clients: Mapping[str, Sequence[Rule] | None]) -> None:
        dns = [server for path in (RESOLV_CONF, DNS_FILE) for server in dns_servers(files.read(path))]
        text = tables(clients, self._addresses, dns)
        if text != self._loaded:
            self._load(text)
            self._loaded = text
            log(f"firewall: rules of {len(clients)} clients")


def load(text: str) -> None:
    """:raise ProgramFailed, OSError: the rules before hold."""
    programs.run(["nft", "-f", "-"], stdin=text)


def main(arguments: list[str]) -> int:
    """``firewall FOLDER``: until standard input ends."""
    os.environ["RES_OPTIONS"] = RESOLVER_OPTIONS
    firewall = Firewall(arguments[0], load, is_told=lambda: _can_read(0.0))
    while True:
        if _can_read(firewall.update()) and not os.read(0, 4096):
            return 0


def _can_read(wait: float) -> bool:
    readable, _, _ = select.select([0], [], [], wait)
    return bool(readable)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
