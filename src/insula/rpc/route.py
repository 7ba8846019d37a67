"""Where an allowed call goes, and as what: decided here, purely; :mod:`insula.rpc.broker` does it."""

from __future__ import annotations

from dataclasses import dataclass

from insula.model.names import ADMIN_NAME
from insula.policy.decisions import Allow
from insula.policy.tokens import ADMIN_SPELLINGS, DISPVM_OF


class NoRoute(Exception):
    """The call must not be made although it is allowed; the message says why."""


@dataclass(frozen=True)
class ToQube:
    """A service in a qube, which is started if it is off."""

    qube: str
    uuid: str
    """``uuid:…`` of the qube that was decided on: a later one of its name is another (MC-20)."""
    user: str
    """Empty: the qube's default user."""
    command: bytes


@dataclass(frozen=True)
class ToDisposable:
    """A service in a new disposable, which is gone when the call is over."""

    base: str
    uuid: str
    """Of the base."""
    user: str
    command: bytes


@dataclass(frozen=True)
class ToHost:
    """A service of the host itself."""

    service: str
    argument: str
    """Without its plus sign."""
    destination: str
    """The qube it is about, as far as the caller named one; dom0 otherwise."""


Route = ToQube | ToDisposable | ToHost


def route(allow: Allow) -> Route:
    """:raise NoRoute: the published answer allows what is unsafe, see ``Allow.objection``."""
    if allow.objection is not None:
        raise NoRoute(allow.objection)
    if allow.target_uuid is None:
        return ToHost(allow.request.service, allow.request.argument[1:], _destination(allow))
    user = allow.user or ""
    # qrexec §3: the service always with its plus sign; a RemoteVM that calls goes by its own name.
    service = allow.service or allow.request.service + allow.request.argument
    source = allow.policy_source or allow.request.source
    command = f"QUBESRPC {service} {source}".encode("ascii")
    if allow.target.startswith(DISPVM_OF):
        return ToDisposable(allow.qube, allow.target_uuid.removeprefix(DISPVM_OF), user, command)
    # For a RemoteVM ``qube`` is the one far away, and the target its relay.
    qube = allow.qube if allow.service is None else allow.target
    return ToQube(qube, allow.target_uuid, user, command)


def _destination(allow: Allow) -> str:
    """The published services of dom0 are told whom the caller named, though the rule sent the call here."""
    named = allow.requested_target
    return ADMIN_NAME if named.startswith("@") or named in ADMIN_SPELLINGS else named
