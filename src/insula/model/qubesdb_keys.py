"""What a guest is told at boot: the QubesDB keys of agent-services §11 that follow from the configuration, and ours.

Guests read these before anything else runs; network keys are there exactly if the qube has a net qube, so a qube
without one has nothing to configure (MC-82).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

from insula.model.errors import QubesValueError
from insula.model.forwards import forwards_of
from insula.model.klass import Klass
from insula.model.names import QubeName
from insula.model.property_defaults import DNS_SERVERS, NETMASK
from insula.model.property_resolution import NO_RUNTIME, view
from insula.model.property_types import Runtime
from insula.model.property_view import View
from insula.model.qube import Qube
from insula.model.services import config_keys, persist_keys, service_keys
from insula.model.system import System
from insula.model.uplink import OUTSIDE_ADDRESS, OUTSIDE_DNS, OUTSIDE_GATEWAY, OUTSIDE_NETMASK, card_of, leads_outside
from insula_proto.firewall import Rule, format_rule
from insula_proto.forward import format_forwards

MAX_PUBLISHED_RULES = 24
"""Of one client, a key each and family: with them 16 clients still fit into the keys that a qube may have."""
SEED_KEY = "/insula-seed"
"""``1``: this machine is a seed; it boots up without an identity and waits to be frozen (docs/decisions/009)."""
REHEARSAL_KEY = "/insula-rehearsal"
"""``1``, besides the one before: this fork is to play through a start (docs/decisions/015)."""
MACHINE_ID_KEY = "/insula-machine-id"
"""The qube's machine-id(5), 32 hex digits: its uuid, so that it stays the same from start to start."""
CLOCK_KEY = "/insula-clock"
"""The host's time, decimal nanoseconds since the epoch: when the keys are read, and when the machine stood still."""

CARD_KEY = "/insula-card"
"""``dhcp``: this qube has a network card of its own, whose network tells it the addresses."""

NETWORK_KEYS = (
    "/qubes-mac",
    "/qubes-ip",
    "/qubes-netmask",
    "/qubes-gateway",
    "/qubes-primary-dns",
    "/qubes-secondary-dns",
    "/qubes-ip6",
    "/qubes-gateway6",
)
"""Those of a qube with a net qube (agent-services §11)."""

MAX_KEY = 63
MAX_VALUE = 3072
"""Bytes (agent-services §11)."""
RANDOM_SEED_BYTES = 64


def boot_keys(
    system: System, name: QubeName, random_seed: bytes, timezone: str, runtime: Runtime = NO_RUNTIME
) -> dict[str, str]:
    """All keys of a qube with a machine, key → value, sorted.

    ``random_seed``: 64 fresh random bytes. ``timezone``: zone name of the host, like ``Europe/Rome``; empty: unknown.

    :raise QubesVMNotFoundError: :raise QubesValueError: something does not fit a key or a value.
    """
    if len(random_seed) != RANDOM_SEED_BYTES:
        raise QubesValueError(f"The random seed has {RANDOM_SEED_BYTES} bytes, not {len(random_seed)}")
    qube = system.get(name)
    if not qube.klass.has_machine:
        raise QubesValueError(f"{name} has no machine that could read keys")
    here = view(system, qube, runtime)
    keys = _identity_keys(here)
    keys["/qubes-random-seed"] = base64.b64encode(random_seed).decode("ascii")
    if timezone and not here.feature_from_template("anon-timezone"):
        keys["/qubes-timezone"] = here.feature_from_template("timezone") or timezone
    # Features first: none of them may take the place of what the system itself says.
    keys = {**service_keys(qube), **config_keys(qube), **persist_keys(qube), **keys}
    keys["/qubes-service/meminfo-writer"] = "1" if here.number("maxmem") > 0 else "0"
    if here.netvm is not None:
        keys |= network_keys(here)
    if leads_outside(here):
        keys |= _outside_keys(here)
    if card_of(here) is not None:
        keys[CARD_KEY] = "dhcp"
    if here.flag("provides_network"):
        keys |= _provider_keys(here)
    keys |= _relay_keys(system, name)
    for key, value in keys.items():
        _check_fits(key, value)
    return dict(sorted(keys.items()))


def seed_keys() -> dict[str, str]:
    """All keys of a machine that is made into a seed: nothing of a qube or of this host, for all forks keep it."""
    return {SEED_KEY: "1"}


def rehearsal_keys(random_seed: bytes, *, has_window: bool) -> dict[str, str]:
    """All keys of a fork that nobody has asked for yet: it plays a start with them, and forgets it.

    An app qube like any other, and like no qube there is. ``has_window``: a first window is played after the start.
    """
    return {
        SEED_KEY: "1",
        REHEARSAL_KEY: "window" if has_window else "start",
        "/name": "nobody-yet",
        MACHINE_ID_KEY: "f" * 32,
        "/type": str(Klass.APPVM),
        "/default-user": "user",
        "/qubes-vm-type": "AppVM",
        "/qubes-vm-updateable": "False",
        "/qubes-vm-persistence": "rw-only",
        "/qubes-base-template": "",
        "/qubes-debug-mode": "0",
        "/keyboard-layout": "us++",
        "/qubes-block-devices": "",
        "/qubes-usb-devices": "",
        "/qubes-service/meminfo-writer": "1",
        "/qubes-random-seed": base64.b64encode(random_seed).decode("ascii"),
    }


def vm_type(here: View) -> str:
    """``/qubes-vm-type``: what the guest is for, in the words its scripts know."""
    if here.subject.klass is Klass.TEMPLATEVM:
        return "TemplateVM"
    if here.flag("provides_network"):
        return "NetVM" if here.netvm is None else "ProxyVM"
    return "AppVM"


def persistence(here: View) -> str:
    """``/qubes-vm-persistence``: which file systems outlive a shutdown."""
    if here.flag("updateable"):
        return "full"
    return "rw-only" if here.subject.klass.is_persistent else "none"


def _identity_keys(here: View) -> dict[str, str]:
    qube = here.subject
    return {
        "/name": qube.name,
        MACHINE_ID_KEY: qube.uuid.hex,
        "/type": str(qube.klass),
        "/default-user": here.text("default_user"),
        "/qubes-vm-type": vm_type(here),
        "/qubes-vm-updateable": str(here.flag("updateable")),
        "/qubes-vm-persistence": persistence(here),
        "/qubes-base-template": qube.template or "",
        "/qubes-debug-mode": str(int(here.flag("debug"))),
        "/keyboard-layout": here.text("keyboard_layout"),
        "/qubes-block-devices": "",
        "/qubes-usb-devices": "",
    }


def network_keys(here: View) -> dict[str, str]:
    """What a qube with a net qube is told of its network; a part of :data:`NETWORK_KEYS`."""
    keys = {
        "/qubes-mac": here.text("mac"),
        "/qubes-ip": here.text("visible_ip"),
        "/qubes-netmask": here.text("visible_netmask"),
        "/qubes-gateway": here.text("visible_gateway"),
        "/qubes-primary-dns": DNS_SERVERS[0],
        "/qubes-secondary-dns": DNS_SERVERS[1],
    }
    if here.value("visible_ip6") is not None:
        keys["/qubes-ip6"] = here.text("visible_ip6")
        keys["/qubes-gateway6"] = here.text("visible_gateway6")
    return keys


def _outside_keys(here: View) -> dict[str, str]:
    """What a qube that is joined to the host's network finds there."""
    folder = f"/net-config/{here.text('mac')}"
    return {
        f"{folder}/ip": OUTSIDE_ADDRESS,
        f"{folder}/netmask": OUTSIDE_NETMASK,
        f"{folder}/gateway": OUTSIDE_GATEWAY,
        "/qubes-primary-dns": OUTSIDE_DNS,
    }


def client_key(here: View) -> str:
    """``/insula-link/N``: what a net qube is told of the client behind its interface N: addresses, words in a row."""
    words = [here.text("mac"), here.text("ip")]
    if here.value("ip6") is not None:
        words.append(here.text("ip6"))
    return " ".join(words)


def firewall_keys(qube: Qube, number: int, now: float) -> dict[str, str]:
    """What a net qube is told of the rules of the client behind its interface ``number``.

    ``/insula-firewall/N/CC`` hold them, as many lines as fit a value each; ``/insula-firewall/N``, to be written last,
    says how many of these there are. A rule whose time is over (``now``: Unix time) is not told, nor when it will be.

    Not the published keys with one rule each: 500 rules of 16 clients would be more keys than a qube may have. Those
    are told besides, where they fit (:func:`published_firewall_keys`).
    """
    chunks = [""]
    for rule in valid_rules(qube.firewall, now):
        line = format_rule(rule, for_guest=True) + "\n"
        if len(chunks[-1]) + len(line) > MAX_VALUE:
            chunks.append("")
        chunks[-1] += line
    folder = f"/insula-firewall/{number}"
    return {**{f"{folder}/{index:02}": chunk for index, chunk in enumerate(chunks)}, folder: str(len(chunks))}


def published_firewall_keys(here: View, now: float) -> dict[str, str]:
    """``/qubes-firewall/IP/…``: the rules of a client as published agents of net qubes read them (agent-services §13).

    The last key of each address, to be written last, says that they are complete. Nothing of a client with more than
    :data:`MAX_PUBLISHED_RULES`.
    """
    rules = valid_rules(here.subject.firewall, now)
    if len(rules) > MAX_PUBLISHED_RULES:
        return {}
    keys: dict[str, str] = {}
    for family, prop in ((4, "ip"), (6, "ip6")):
        if here.value(prop) is None:
            continue
        folder = f"/qubes-firewall/{here.text(prop)}"
        keys[f"{folder}/policy"] = "drop"
        for number, rule in enumerate(rules):
            if rule.target is None or rule.target.family in (None, family):
                keys[f"{folder}/{number:04}"] = format_rule(rule, for_guest=True)
        keys[folder] = ""
    return keys


def forward_keys(qube: Qube, number: int) -> dict[str, str]:
    """``/insula-forward/N``: which ports of a net qube lead to the client behind its interface ``number``."""
    forwards = forwards_of(qube)
    return {f"/insula-forward/{number}": format_forwards(forwards)} if forwards else {}


def valid_rules(rules: Iterable[Rule], now: float) -> list[Rule]:
    """Those whose time is not over (``now``: Unix time)."""
    return [rule for rule in rules if rule.expire is None or rule.expire > now]


def _provider_keys(here: View) -> dict[str, str]:
    """What a net qube tells its clients."""
    keys = {
        "/qubes-netvm-network": here.text("gateway"),
        "/qubes-netvm-gateway": here.text("gateway"),
        "/qubes-netvm-netmask": NETMASK,
        "/qubes-netvm-primary-dns": DNS_SERVERS[0],
        "/qubes-netvm-secondary-dns": DNS_SERVERS[1],
    }
    if here.value("gateway6") is not None:
        keys["/qubes-netvm-gateway6"] = here.text("gateway6")
    return keys


def _relay_keys(system: System, name: QubeName) -> dict[str, str]:
    """``/remote/NAME`` for each qube elsewhere that is reached through this one (agent-services §16)."""
    return {
        f"/remote/{remote.name}": str(remote.properties.get("remote_name") or remote.name)
        for remote in system.qubes.values()
        if remote.klass is Klass.REMOTEVM and remote.properties.get("relayvm") == name
    }


def _check_fits(key: str, value: str) -> None:
    """:raise QubesValueError:"""
    if len(key.encode()) > MAX_KEY:
        raise QubesValueError(f"QubesDB key {key!a} is longer than {MAX_KEY} bytes")
    if len(value.encode()) > MAX_VALUE:
        raise QubesValueError(f"The value of QubesDB key {key!a} is longer than {MAX_VALUE} bytes")
