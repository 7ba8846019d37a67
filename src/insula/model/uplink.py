"""The way out of the last net qube: the host's network, a network card of its own, or none."""

from __future__ import annotations

from enum import StrEnum

from insula.model.errors import QubesException
from insula.model.pci import PciAddress
from insula.model.property_view import View

CARD_PREFIX = "pci:"
"""Of a value of the property ``uplink`` that names a network card of this host, ``pci:0000:03:00.0``."""


class Uplink(StrEnum):
    """The other values of the property ``uplink``."""

    NONE = "none"
    HOST = "host"
    """The network of this host, as an ordinary program reaches it; nothing of the host itself."""


OUTSIDE_ADDRESS = "10.0.2.15"
OUTSIDE_NETMASK = "255.255.255.0"
OUTSIDE_GATEWAY = "10.0.2.2"
OUTSIDE_DNS = "10.0.2.3"
"""What a qube finds behind :attr:`Uplink.HOST`: the numbers that user-mode networks have always had."""


def leads_outside(here: View) -> bool:
    """Whether a qube is joined to the host's network. :raise QubesException: it is to have two networks."""
    return _only_uplink(here) == Uplink.HOST


def card_of(here: View) -> PciAddress | None:
    """The network card that a qube has for itself. :raise QubesException: it is to have two networks."""
    uplink = _only_uplink(here)
    return PciAddress.parse(uplink.removeprefix(CARD_PREFIX)) if uplink.startswith(CARD_PREFIX) else None


def _only_uplink(here: View) -> str:
    uplink = here.text("uplink")
    if uplink != Uplink.NONE and here.netvm is not None:
        name = here.subject.name
        raise QubesException(
            f"{name} has both a net qube and the uplink {uplink!r}: set one of netvm and uplink to none"
        )
    return uplink
