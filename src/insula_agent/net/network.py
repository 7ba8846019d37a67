"""The network of this qube: its own interface, and, in a net qube, those of its clients.

In order: the rules are there before the first interface of a client is, and an interface carries packets only once its
client is in the rules (MC-83). What fails leaves the network closed: packets are passed on only after the rules were
taken, and an interface that could not be set up stays down.

Interfaces of clients come and go while the qube runs. The kernel tells (rtnetlink) *that* something changed; what is
there is then looked up by its address, which carries the number of the link. Clients come as keys, ``/insula-link/N``.
"""

from __future__ import annotations

import _socket
import os
import sys

from insula_agent import files, programs
from insula_agent.log import log
from insula_agent.loop import READ, Loop
from insula_agent.net import interfaces, roles
from insula_agent.net.card import Card
from insula_agent.net.firewall_rules import closed_table
from insula_agent.net.interfaces import GATEWAY_KEY, GATEWAY_MAC, NetworkError, Uplink
from insula_agent.net.rules import CLIENT_GROUP, PUBLISHED_DNS, Client, ruleset, update
from insula_proto.forward import ForwardError, parse_forwards

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from insula_proto.forward import Forward

LINK_PREFIX = "/insula-link/"
FIREWALL_PREFIX = "/insula-firewall/"
FORWARD_PREFIX = "/insula-forward/"
FIREWALL_FOLDER = "/run/insula/firewall"
LAUNCHER = "/usr/lib/insula/insula_agent/net/firewall_start.py"
MAX_PARTS_DIGITS = 2
RESTART = 2.0
"""Seconds until the firewall's program is started again."""
CARD_KEY = "/insula-card"
"""This qube has a network card of its own."""
RESOLV_CONF = "/etc/resolv.conf"
FORWARDING = "/proc/sys/net/ipv4/ip_forward"
FORWARDING6 = "/proc/sys/net/ipv6/conf/all/forwarding"
SETTLE = 0.02
"""Seconds after a key of the network until it is acted on: they come several at a time."""
LOOK_AGAIN = 0.25
LOOKS = 40
"""How often an interface that is to come is looked for."""
QUICK_LOOKS = 10
"""How often at once, SETTLE apart, with everything else waiting: a driver that was just loaded shows it in a moment."""
METRIC_BASE = 32752
"""Of the route to a client, less its number (agent-services §12)."""

_RTMGRP_LINK = 1
"""<linux/rtnetlink.h>"""
_NETLINK_ROUTE = 0
_NOTICE_SIZE = 65536


def link_mac(number: int) -> str:
    """Address of the interface of link ``number`` when the machine gets it (docs/decisions/013)."""
    return f"fe:ff:ff:00:{number >> 8:02x}:{number & 0xFF:02x}"


def client_commands(client: Client, name: str, gateway: str) -> list[str]:
    """Lines for ``ip -batch`` that make interface ``name`` the client's."""
    own = client.interface
    lines = []
    if name != own:
        # An interface is renamed while it is down.
        lines += [f"link set dev {name} down", f"link set dev {name} name {own}"]
    lines.append(f"link set dev {own} address {GATEWAY_MAC} group {CLIENT_GROUP} up")
    lines.append(f"address replace {gateway}/32 dev {own}")
    lines.append(f"route replace {client.ip} dev {own} metric {METRIC_BASE - client.number}")
    lines.append(f"neighbour replace {client.ip} lladdr {client.mac} dev {own} nud permanent")
    if client.ip6 is not None:
        lines.append(f"route replace {client.ip6} dev {own} metric {METRIC_BASE - client.number}")
        lines.append(f"neighbour replace {client.ip6} lladdr {client.mac} dev {own} nud permanent")
    return lines


def clients_of(keys: Mapping[str, bytes]) -> dict[int, Client]:
    """Clients by number; a value that is none is left out, so nobody is behind that link."""
    found = {}
    for path, value in keys.items():
        digits = path[len(LINK_PREFIX) :]
        if not path.startswith(LINK_PREFIX) or not digits.isdigit():
            continue
        try:
            found[int(digits)] = Client(int(digits), value)
        except NetworkError as error:
            log(str(error))
    return found


def forwards_of(keys: Mapping[str, bytes]) -> dict[int, list[Forward]]:
    """Ports that lead to clients, by number of the link; a value that is no list of them leads nowhere."""
    found = {}
    for path, value in keys.items():
        digits = path[len(FORWARD_PREFIX) :]
        if not path.startswith(FORWARD_PREFIX) or not digits.isdigit():
            continue
        try:
            found[int(digits)] = parse_forwards(value.decode("ascii", "replace"))
        except ForwardError as error:
            log(f"link {digits}: {error}")
    return found


def firewall_of(keys: Mapping[str, bytes], number: int) -> str | None:
    """Rules of a link's client as the keys have them, a line each; None: they are not complete, so nothing may pass.

    ``/insula-firewall/N`` says in how many parts they come, ``/insula-firewall/N/CC`` are these.
    """
    folder = f"{FIREWALL_PREFIX}{number}"
    count = keys.get(folder, b"")
    if not count.isdigit() or len(count) > MAX_PARTS_DIGITS:
        return None
    parts = [keys.get(f"{folder}/{index:02}") for index in range(int(count))]
    return None if None in parts else b"".join([part for part in parts if part is not None]).decode("ascii", "replace")


class NotThere(NetworkError):
    """An interface is not there, not yet or not any more."""


class Firewall:
    """The program that carries out the clients' rules (:mod:`insula_agent.net.firewall`), and what it reads."""

    def __init__(self, loop: Loop, folder: str = FIREWALL_FOLDER) -> None:
        self._loop = loop
        self._folder = folder
        self._pid = 0
        self._pidfd = -1
        self._stdin = -1

    def start(self) -> None:
        """:raise OSError: no process."""
        os.makedirs(self._folder, mode=0o755, exist_ok=True)
        reader, self._stdin = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", LAUNCHER, self._folder],
                {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
                file_actions=[(os.POSIX_SPAWN_DUP2, reader, 0)],
                setsigmask=(),
            )
        finally:
            os.close(reader)
        self._pidfd = os.pidfd_open(self._pid)
        self._loop.watch(self._pidfd, READ, self._ended)

    def _ended(self, events: int) -> None:
        """It is missed, and what it loaded holds meanwhile."""
        del events
        self._loop.forget(self._pidfd)
        os.close(self._pidfd)
        os.close(self._stdin)
        self._stdin = -1
        _, status = os.waitpid(self._pid, 0)
        log(f"firewall: it ended ({os.waitstatus_to_exitcode(status)}), another is started")
        self._loop.after(RESTART, self.start)

    def put(self, ip: str, rules: str | None) -> None:
        """Rules of a client; None: it has none, and nothing of it passes. :raise OSError:"""
        path = f"{self._folder}/{ip}"
        if rules is None:
            try:
                os.unlink(path)
            except FileNotFoundError:
                return
        else:
            files.write(f"{path}.new", rules)
            os.replace(f"{path}.new", path)

    def clients(self) -> list[str]:
        """Addresses of those who have rules."""
        return [name for name in os.listdir(self._folder) if not name.endswith(".new")]

    def tell(self) -> None:
        """Something has changed."""
        if self._stdin >= 0:
            try:
                os.write(self._stdin, b"\n")
            except OSError as error:
                # A full pipe is as good a notice; one that is broken is noticed as its end.
                log(f"firewall: {error}")


class Network:
    """Belongs to the agent's loop."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._keys: dict[str, bytes] = {}
        self._services: frozenset[str] = frozenset()
        self._uplink: Uplink | None = None
        self._uplink_index = ""
        """The kernel's number of the interface that was set up for it; no other ever has it."""
        self._card: Card | None = None
        self._clients: dict[int, Client] = {}
        self._is_up: dict[int, Client] = {}
        """Clients whose interface is set up."""
        self._parted: set[int] = set()
        """Links whose interface was taken away since keys were acted on last; the same client may be back by then."""
        self._rules: str | None = None
        """What differs between rules, as it was taken last; None: none were."""
        self._tunnel_dns: list[str] | None = None
        """Of a VPN, as its rules were told last; None: they were not."""
        self._is_provider = False
        self._firewall: Firewall | None = None
        self._rules_of: dict[int, str | None] = {}
        """Complete rules by the number of the link; never a mixture of two versions."""
        self._has_firewall = False
        """Whether its program was started."""
        self._is_planned = False
        self._looks_left = 0
        self._uplink_looks_left = 0

    def begin(self, keys: Mapping[str, bytes], services: frozenset[str]) -> None:
        """Set up what the keys of the network say; all of these, as read from the host. May be called again."""
        self._keys = dict(keys)
        self._services = services
        numbers = [path[len(FIREWALL_PREFIX) :] for path in self._keys if path.startswith(FIREWALL_PREFIX)]
        self._rules_of = {int(text): firewall_of(self._keys, int(text)) for text in numbers if text.isdigit()}
        if "qubes-network" in services and not self._is_provider:
            self._is_provider = True
            self._listen()
            if "qubes-firewall" in services:
                self._firewall = Firewall(self._loop)
        self._uplink_looks_left = LOOKS
        if self._is_up:
            # What happened while the host was not heard is not in the keys.
            names = interfaces.names_by_mac().values()
            self._parted.update([number for number, client in self._is_up.items() if client.interface not in names])
        self._apply()

    def key_changed(self, path: str, value: bytes | None) -> None:
        """A key of the network was set, or is gone (None)."""
        if value is None:
            self._keys.pop(path, None)
            if path.startswith(LINK_PREFIX) and path[len(LINK_PREFIX) :].isdigit():
                self._parted.add(int(path[len(LINK_PREFIX) :]))
        else:
            self._keys[path] = value
        if path.startswith(FIREWALL_PREFIX):
            number = path[len(FIREWALL_PREFIX) :]
            if not number.isdigit():
                # A part: what is written last says that all are there.
                return
            self._rules_of[int(number)] = firewall_of(self._keys, int(number))
        self._uplink_looks_left = LOOKS
        self._plan(SETTLE)

    def _plan(self, seconds: float) -> None:
        if not self._is_planned:
            self._is_planned = True
            self._loop.after(seconds, self._apply)

    # --- acting --------------------------------------------------------------------------------------------------

    def _apply(self) -> None:
        self._is_planned = False
        if not self._has_role_rules():
            # A way out that the role closes is never open, not even for this qube's own packets.
            return
        try:
            if CARD_KEY in self._keys:
                self._set_up_card()
            else:
                self._set_up_uplink()
        except NotThere as error:
            # It may be about to be plugged, and its driver to be loaded.
            if self._uplink_looks_left:
                self._uplink_looks_left -= 1
                self._plan(LOOK_AGAIN)
            else:
                log(f"network: {error}")
        except (NetworkError, KeyError, OSError) as error:
            log(f"network: {error}")
        if self._is_provider:
            try:
                self._set_up_clients()
            except (NetworkError, KeyError, OSError) as error:
                log(f"net qube: {error}")

    def _set_up_card(self) -> None:
        if self._card is None:
            self._card = Card(self._loop, self._apply)
            self._card.start()
        self._name_servers_are(self._card.dns)

    def _name_servers_are(self, servers: list[str]) -> None:
        if "disable-dns-server" not in self._services:
            text = interfaces.resolv_conf(servers)
            if files.read(RESOLV_CONF) != text:
                files.change(RESOLV_CONF, text)

    def _real_dns(self) -> list[str]:
        """Name servers that are not the published names of somebody else's."""
        servers = self._card.dns if self._card is not None else [] if self._uplink is None else self._uplink.dns
        return [address for address in servers if address not in PUBLISHED_DNS]

    def _has_role_rules(self) -> bool:
        """Whether the rules of this qube's role hold, or it has none; they are loaded if they are not yet."""
        if self._is_provider and self._rules is None and roles.names(self._services):
            self._clients = clients_of(self._keys)
            try:
                self._load_rules()
            except NetworkError as error:
                log(f"net qube: {error}")
                return False
        return True

    def _set_up_uplink(self) -> None:
        has_address = any(path.startswith(("/qubes-ip", "/net-config/")) for path in self._keys)
        uplink = Uplink(self._keys) if has_address else None
        if uplink == self._uplink and (uplink is None or self._index_of(uplink) == self._uplink_index):
            return
        before, self._uplink = self._uplink, None
        name = None if uplink is None else self._wait_for(uplink.mac)
        old = None if before is None else interfaces.find(before.mac)
        lines = [] if old is None else [f"address flush dev {old}", f"route flush dev {old}"]
        if uplink is None:
            self._name_servers_are([])
        try:
            if uplink is not None and name is not None:
                if uplink.address6 is None:
                    _switch_off_ip6(name)
                route = "disable-default-route" not in self._services
                lines += uplink.commands(name, with_default_route=route)
            # All in one run: who waits for the network waits for each start of a program.
            interfaces.run_ip(lines)
        except (NetworkError, OSError) as error:
            # It may have been pulled out just now, and another one be about to be plugged.
            raise NotThere(str(error)) from error
        if uplink is not None:
            self._name_servers_are(uplink.dns)
        self._uplink_index = "" if uplink is None else self._index_of(uplink)
        self._uplink = uplink

    def _index_of(self, uplink: Uplink) -> str:
        """Of the interface that is there for it now; empty: none is. It may have been pulled out and plugged again
        while the keys, looked at late, say what they said before."""
        name = interfaces.find(uplink.mac)
        return "" if name is None else interfaces.attribute(name, "ifindex")

    def _wait_for(self, mac: str) -> str:
        """The interface with this address: there, or at once when its driver is. :raise NetworkError:"""
        import time  # noqa: PLC0415 - only where it is not there yet

        for look in range(QUICK_LOOKS):
            name = interfaces.find(mac)
            if name is not None:
                return name
            if look == 0:
                # Before udev runs nobody loads drivers.
                try:
                    programs.run(["modprobe", "virtio_net"])
                except (programs.ProgramFailed, OSError) as error:
                    raise NetworkError(f"no driver: {error}") from error
            time.sleep(SETTLE)
        raise NotThere(f"no interface with the address {mac}")

    def _set_up_clients(self) -> None:
        """:raise NetworkError: rules were not taken: what they were is what holds."""
        self._clients = clients_of(self._keys)
        self._load_rules()
        gone = [
            client
            for number, client in self._is_up.items()
            if number in self._parted or self._clients.get(number) != client
        ]
        self._parted.clear()
        for client in gone:
            del self._is_up[client.number]
            self._take_down(client)
        self._set_up_firewall()
        self._looks_left = LOOKS
        self._look_for_interfaces()
        if roles.VPN in self._services and self._tunnel_dns is None:
            # One that was there before this agent.
            self.look_for_tunnel()

    def _set_up_firewall(self) -> None:
        """Rules of the clients there are; nobody else's. :raise OSError:"""
        if self._firewall is None:
            return
        owners = {ip: client for client in self._clients.values() for ip in (client.ip, client.ip6) if ip is not None}
        if not self._has_firewall:
            self._has_firewall = True
            self._firewall.start()
        for ip in set(self._firewall.clients()).difference(owners):
            self._firewall.put(ip, None)
        for ip, client in owners.items():
            self._firewall.put(ip, self._rules_of.get(client.number))
        self._firewall.tell()

    def _load_rules(self) -> None:
        clients = [self._clients[number] for number in sorted(self._clients)]
        make = ruleset if self._rules is None else update
        has_role = bool(roles.names(self._services))
        # A qube with a role leads nowhere but where its role does, in neither direction.
        dns, forwards = ([], {}) if has_role else (self._real_dns(), forwards_of(self._keys))
        rules = update(clients, dns, forwards)
        if rules == self._rules:
            return
        text = make(clients, dns, forwards)
        if self._rules is None:
            # In one go: there is no moment without them.
            text += roles.ruleset(self._services)
            if self._firewall is not None:
                text += closed_table()
        try:
            programs.run(["nft", "-f", "-"], stdin=text)
        except (programs.ProgramFailed, OSError) as error:
            raise NetworkError(f"rules were not taken: {error}") from error
        if self._rules is None and roles.VPN in self._services:
            self._set_up_routing()
        if self._rules is None and not roles.is_closed(self._services):
            # Only now: without rules nothing is passed on.
            files.write(FORWARDING, "1\n")
            files.write(FORWARDING6, "1\n")
        self._rules = rules

    def _set_up_routing(self) -> None:
        """Clients' packets look for their way where only a tunnel is."""
        for line in roles.routing():
            try:
                interfaces.run_ip([line])
            except NetworkError as error:
                # It is there already if this agent was started again; without it the rules let nothing pass.
                log(f"net qube: {line}: {error}")

    def look_for_tunnel(self) -> None:
        """Send what clients send into the interface that is the tunnel now, if there is one."""
        name = interfaces.first_of_group(roles.TUNNEL_GROUP)
        if name is None:
            return
        dns = interfaces.name_servers(files.read(roles.DNS_FILE))
        try:
            # Every time: whether it was down for a moment is not known, and then the kernel has forgotten the route.
            interfaces.run_ip([roles.tunnel_route(name)])
            if dns != self._tunnel_dns:
                programs.run(["nft", "-f", "-"], stdin=roles.tunnel_dns(dns))
                self._tunnel_dns = dns
        except (NetworkError, programs.ProgramFailed, OSError) as error:
            log(f"tunnel {name}: {error}")
            return
        log(f"tunnel: {name}, name servers: {' '.join(dns) or 'none'}")
        if self._firewall is not None:
            self._firewall.tell()

    def _take_down(self, client: Client) -> None:
        # Most often it was pulled out before: then no program has to find that out.
        if client.interface in interfaces.names_by_mac().values():
            try:
                interfaces.run_ip([f"link set dev {client.interface} down"])
            except NetworkError:
                # Meanwhile it was.
                return

    # --- interfaces of clients -----------------------------------------------------------------------------------

    def _listen(self) -> None:
        notices = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
        notices.bind((0, _RTMGRP_LINK))
        notices.setblocking(False)
        self._notices = notices
        self._loop.watch(notices.fileno(), READ, self._noticed)

    def _noticed(self, events: int) -> None:
        del events
        try:
            self._notices.recv(_NOTICE_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            # ENOBUFS: more notices than it keeps. What is there is looked up anyway.
            log(f"net qube: {error}")
        self._look_for_interfaces(by_notice=True)
        if roles.VPN in self._services and self._rules is not None:
            self.look_for_tunnel()

    def _look_for_interfaces(self, *, by_notice: bool = False) -> None:
        """Set up the interfaces that are there for clients who wait; look again for those that are not."""
        waiting = [client for number, client in self._clients.items() if number not in self._is_up]
        if not waiting or self._rules is None:
            return
        names = interfaces.names_by_mac()
        try:
            gateway = interfaces.parse_ip4(self._keys[GATEWAY_KEY])
        except (NetworkError, KeyError) as error:
            log(f"net qube: no address for its clients: {error}")
            return
        for client in waiting:
            name = names.get(link_mac(client.number))
            if name is None:
                continue
            try:
                self._bring_up(client, name, gateway)
            except (NetworkError, OSError) as error:
                log(f"link {client.number}: {error}")
        if len(self._is_up) < len(self._clients) and not by_notice and self._looks_left:
            self._looks_left -= 1
            self._loop.after(LOOK_AGAIN, self._look_for_interfaces)

    def _bring_up(self, client: Client, name: str, gateway: str) -> None:
        if client.ip6 is None:
            _switch_off_ip6(name)
        # Clients that know no better ask for the gateway's address by ARP.
        files.write(f"/proc/sys/net/ipv4/conf/{name}/proxy_arp", "1\n")
        interfaces.run_ip(client_commands(client, name, gateway))
        self._is_up[client.number] = client
        log(f"link {client.number}: {client.ip} at {client.interface}")


def _switch_off_ip6(name: str) -> None:
    """No addresses of its own making, no router advertisements. Before it is up."""
    files.write(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "1\n")
