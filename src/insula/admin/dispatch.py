"""From a decoded request to its handler: the checks every method has in common, in the published order.

Order clients can notice (admin-api §1): unknown qube, even as source → unknown method → payload given or not →
argument given or not → destination → the handler's own.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from uuid import UUID

from insula.admin.call import Call, Context, Destination, Method, Presence, Right, Upload
from insula.hal.errors import HalError
from insula.model.errors import (
    InsulaError,
    ProtocolError,
    QubesException,
    QubesVMNotFoundError,
    QubesVolumeNotFoundError,
    QubesVolumeRevisionNotFoundError,
    StoragePoolException,
)
from insula.model.qube import Qube
from insula.model.system import System
from insula.storage.pool import NoSuchRevision, NoSuchVolume, StorageError
from insula_proto.admin import UUID_PREFIX, RequestHead

_log = logging.getLogger("insula.admin")

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Dispatcher:
    """Finds and checks; does not run. One for each socket: each has its own table of methods."""

    def __init__(self, context: Context, methods: Mapping[str, Method]) -> None:
        self.context = context
        self._methods = methods

    def find_qube(self, untrusted_reference: str) -> Qube:
        """:raise QubesVMNotFoundError:"""
        return find_qube(self.context.store.system, untrusted_reference)

    def takes_stream(self, untrusted_method: str) -> bool:
        """Whether the payload of this method is a stream of any length."""
        method = self._methods.get(untrusted_method)
        return method is not None and isinstance(method.action, Upload)

    def check(self, source: Qube, head: RequestHead, untrusted_payload: bytes | None) -> tuple[Method, Call]:
        """Check the form of the call. ``untrusted_payload=None``: it is a stream and not looked at.

        :raise QubesVMNotFoundError, ProtocolError:
        """
        dest = self.find_qube(head.dest)
        method = self._methods.get(head.method)
        if method is None:
            raise ProtocolError(f"No such method: {head.method[:64]}")
        if untrusted_payload is not None:
            _check_presence(method, "payload", method.payload, bool(untrusted_payload))
        _check_presence(method, "argument", method.arg, bool(head.arg))
        if method.dest is Destination.ADMIN and not dest.is_admin:
            raise ProtocolError(f"{method.name} must be called on dom0, not on {dest.name}")
        if method.dest is Destination.NOT_ADMIN and dest.is_admin:
            raise ProtocolError(f"{method.name} cannot be called on dom0")
        level = logging.DEBUG if method.right is Right.READ else logging.INFO
        _log.log(level, "%s+%s from %s on %s", method.name, head.arg, source.name, dest.name)
        return method, Call(method.name, source, dest, head.arg, untrusted_payload or b"")


def find_qube(system: System, untrusted_reference: str) -> Qube:
    """Find a qube by name or ``uuid:…``. :raise QubesVMNotFoundError:"""
    if untrusted_reference.startswith(UUID_PREFIX):
        untrusted_uuid = untrusted_reference.removeprefix(UUID_PREFIX)
        if not _UUID.fullmatch(untrusted_uuid):
            raise QubesVMNotFoundError(f"Not a UUID: {untrusted_uuid[:64]!a}")
        return system.by_uuid(UUID(untrusted_uuid))
    return system.get(untrusted_reference)


PublishedError = (InsulaError, StorageError, HalError)
"""What clients are told by name; anything else is an error of ours."""


def published_error(error: InsulaError | StorageError | HalError) -> tuple[str, str]:
    """Name on the wire and message of an error; those of storage and machines have no published name of their own."""
    if isinstance(error, InsulaError):
        return error.wire_name, str(error)
    if isinstance(error, NoSuchRevision):
        return QubesVolumeRevisionNotFoundError.__name__, str(error)
    if isinstance(error, NoSuchVolume):
        return QubesVolumeNotFoundError.__name__, str(error)
    if isinstance(error, StorageError):
        return StoragePoolException.__name__, str(error)
    return QubesException.__name__, str(error)


def _check_presence(method: Method, what: str, rule: Presence, given: bool) -> None:
    if rule is Presence.NONE and given:
        raise ProtocolError(f"{method.name} takes no {what}")
    if rule is Presence.REQUIRED and not given:
        raise ProtocolError(f"{method.name} needs a {what}" if what == "payload" else f"{method.name} needs an {what}")
