"""Ports of a net qube that lead to a qube behind it: a feature of that qube, ``net.forward``.

Each is explicit and listed (``insula forward``, ``insula net``); nothing else comes in from outside.
"""

from __future__ import annotations

from insula.model.qube import Qube
from insula_proto.forward import Forward, ForwardError, parse_forwards

FEATURE = "net.forward"


def forwards_of(qube: Qube) -> list[Forward]:
    """Those of a qube. A value that was written past all checks is none."""
    try:
        return parse_forwards(qube.features.get(FEATURE, ""))
    except ForwardError:
        return []
