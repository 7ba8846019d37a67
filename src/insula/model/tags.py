"""Tags: words attached to qubes, for policy and people (admin-api §2).

Some are kept by the system itself: who made a qube (``created-by-…``, given at creation and changed by dom0 only),
and which qubes serve it (``guivm-…``, ``audiovm-…``, ``relayvm-…``, following the properties).
"""

from __future__ import annotations

import re

from insula.model.errors import PermissionDenied, QubesInvalidTagError, QubesTagNotFoundError
from insula.model.names import ADMIN_NAME, QubeName
from insula.model.property_resolution import names_for, view
from insula.model.qube import Qube
from insula.model.system import System

MAX_TAG = 128
"""Characters; ours. ``disp-created-by-`` and the longest name fit."""
MAX_TAGS = 1000
"""Tags of one qube; ours."""

_TAG = re.compile(r"[A-Za-z0-9_-]+")
_KEPT_TAG = re.compile(r"(created-by-|disp-created-by-|guivm-|audiovm-|relayvm-)[A-Za-z0-9_.-]+")
"""Tags the system makes; these hold qube names, whose alphabet has one character more."""
_SERVED_BY = ("guivm", "audiovm", "relayvm")


def parse_tag(untrusted_tag: str) -> str:
    """Return the tag if it may be one. :raise QubesInvalidTagError: wrong length or alphabet."""
    if not 1 <= len(untrusted_tag) <= MAX_TAG:
        raise QubesInvalidTagError(f"A tag has 1 to {MAX_TAG} characters, this one {len(untrusted_tag)}")
    if not (_TAG.fullmatch(untrusted_tag) or _KEPT_TAG.fullmatch(untrusted_tag)):
        raise QubesInvalidTagError(f"Tag {untrusted_tag!a} may contain only A-Z a-z 0-9 _ -")
    return untrusted_tag


def check_may_change(tag: str, caller: QubeName) -> None:
    """:raise PermissionDenied: the tag says who made a qube and the caller is not dom0."""
    if tag.startswith("created-by-") and caller != ADMIN_NAME:
        raise PermissionDenied(f"Tag {tag} can be changed by {ADMIN_NAME} only")


def with_tag(system: System, name: QubeName, tag: str) -> System:
    """:raise QubesVMNotFoundError: :raise QubesInvalidTagError: too many tags."""
    qube = system.get(name)
    if len(qube.tags | {tag}) > MAX_TAGS:
        raise QubesInvalidTagError(f"{name} has {MAX_TAGS} tags already")
    return system.with_qube(qube.with_tags([tag]))


def without_tag(system: System, name: QubeName, tag: str) -> System:
    """:raise QubesVMNotFoundError, QubesTagNotFoundError:"""
    qube = system.get(name)
    if tag not in qube.tags:
        raise QubesTagNotFoundError(f"{name} has no tag {tag!a}")
    return system.with_qube(qube.without_tags([tag]))


def creation_tags(created_by: QubeName, *, disposable: bool = False) -> frozenset[str]:
    """Tags of a new qube; ``disposable``: made by CreateDisposable."""
    tags = {f"created-by-{created_by}"}
    if disposable:
        tags.add(f"disp-created-by-{created_by}")
    return frozenset(tags)


def with_kept_tags(system: System) -> System:
    """Make the tags that follow ``guivm``, ``audiovm`` and ``relayvm`` of every qube say what the properties say."""
    changed = []
    for qube in system.qubes.values():
        others = {tag for tag in qube.tags if not tag.startswith(tuple(f"{role}-" for role in _SERVED_BY))}
        tags = others | _serving_tags(system, qube)
        if tags != qube.tags:
            changed.append(qube.without_tags(qube.tags).with_tags(tags))
    return system.with_qubes(changed) if changed else system


def _serving_tags(system: System, qube: Qube) -> set[str]:
    here, known = view(system, qube), set(names_for(qube.klass))
    servers = {role: here.vm(role) for role in _SERVED_BY if role in known}
    return {f"{role}-{server}" for role, server in servers.items() if server is not None}
