"""The way out of the last net qube: the host's network, or none."""

from __future__ import annotations

from enum import StrEnum

from insula.model.errors import QubesException
from insula.model.property_view import View


class Uplink(StrEnum):
    """Values of the property ``uplink``."""

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
    if here.text("uplink") != Uplink.HOST:
        return False
    if here.netvm is not None:
        name = here.subject.name
        raise QubesException(f"{name} has both a net qube and the uplink 'host': set one of netvm and uplink to none")
    return True
