"""Roles that a qube may be made for: what it is given at once, by the words everybody can set one by one.

A role is nothing more than properties, services and tags; what a service means inside is the agent's
(:mod:`insula_agent.net.roles`). Who has the tag :data:`ANONYMOUS` reaches the network through a Tor gateway or not at
all; :func:`refusal` decides that for every link, whoever asked for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from insula.model.klass import Klass
from insula.model.qube import Qube
from insula.model.system import System

ANONYMOUS = "anon-vm"
"""Tag of qubes that must not be linked with who uses them; the published word."""
GATEWAY = "anon-gateway"
"""Tag of what they go through; for policy alone. What counts is the service."""
TOR_SERVICE = "service.tor-gateway"
VPN_SERVICE = "service.vpn-gateway"
FIXED_WHILE_ON = frozenset((TOR_SERVICE, VPN_SERVICE))
"""Features that a qube meets at its start alone: changed meanwhile, they would say what is not so."""

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Role:
    name: str
    summary: str
    label: str
    """Colour of the qube if none is asked for."""
    properties: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    features: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    tags: tuple[str, ...] = ()
    needs_netvm: bool = False
    """Whether its net qube must be named: the default one would be wrong."""


ROLES: Mapping[str, Role] = MappingProxyType(
    {
        role.name: role
        for role in (
            Role(
                "vpn",
                "net qube whose clients reach the network through its tunnel, or not at all",
                "green",
                {"provides_network": "True"},
                {VPN_SERVICE: "1"},
            ),
            Role(
                "tor-gateway",
                "net qube whose clients reach the network through Tor, or not at all",
                "black",
                {"provides_network": "True"},
                # It forwards nothing, so there is nothing for a firewall to judge. Templates may fetch through it.
                {TOR_SERVICE: "1", "service.qubes-firewall": "", "service.qubes-updates-proxy": "1"},
                (GATEWAY,),
            ),
            Role(
                "tor-workstation",
                "qube that reaches the network through a Tor gateway, or not at all",
                "red",
                # What it opens elsewhere must not reach the network another way.
                {"default_dispvm": ""},
                {"anon-timezone": "1"},
                (ANONYMOUS,),
                needs_netvm=True,
            ),
        )
    }
)


def is_tor_gateway(qube: Qube) -> bool:
    return bool(qube.features.get(TOR_SERVICE))


def is_anonymous(system: System, qube: Qube) -> bool:
    """Whether it is, or is a disposable of one that is."""
    if ANONYMOUS in qube.tags:
        return True
    template = None if qube.template is None else system.qubes.get(qube.template)
    return qube.klass is Klass.DISPVM and template is not None and ANONYMOUS in template.tags


def refusal(system: System, client: Qube, provider: Qube | None) -> str:
    """Why a qube must not have this net qube (None: the host's network); empty if it may."""
    if not is_anonymous(system, client) or (provider is not None and is_tor_gateway(provider)):
        return ""
    other = "the host's network" if provider is None else provider.name
    return f"{client.name} has the tag {ANONYMOUS}: it goes through a Tor gateway, not through {other}"
