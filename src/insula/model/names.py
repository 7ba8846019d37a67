"""Names a user or a client may give to things, and the rules they must follow (admin-api §1, §2)."""

from __future__ import annotations

import re
from typing import NewType

from insula.model.errors import QubesValueError

QubeName = NewType("QubeName", str)
"""A name that passed :func:`parse_qube_name`."""

ADMIN_NAME = QubeName("dom0")
UPDATES = "updates-available"
"""Feature of a template whose qube told that there is something newer (admin-api §4); here, for commands that show it
load nothing else of the model."""

MAX_QUBE_NAME = 31
"""Bytes; admin-api §1."""

_QUBE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_RESERVED = frozenset({"none", "default", "domain-0", "ask", "dom0", "adminvm"})
"""Words that mean something in policy, tools or the hypervisor; compared without case so that no qube
can pass for one of them (MC-19)."""


def parse_qube_name(untrusted_name: str) -> QubeName:
    """Return the name if a qube may be called so (``dom0`` is a valid reference).

    :raise QubesValueError: too long, a character outside the alphabet, or a reserved word.
    """
    if untrusted_name == ADMIN_NAME:
        return ADMIN_NAME
    if not 1 <= len(untrusted_name) <= MAX_QUBE_NAME:
        raise QubesValueError(f"A qube name has 1 to {MAX_QUBE_NAME} characters, this one {len(untrusted_name)}")
    if not _QUBE_NAME.fullmatch(untrusted_name):
        raise QubesValueError(
            f"Qube name {untrusted_name!a} must start with a letter and contain only A-Z a-z 0-9 _ . -"
        )
    if untrusted_name.lower() in _RESERVED or untrusted_name.endswith("-dm"):
        raise QubesValueError(f"Qube name {untrusted_name!r} is reserved")
    return QubeName(untrusted_name)
