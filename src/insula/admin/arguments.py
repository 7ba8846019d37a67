"""Arguments and payloads: from what a client sent to values, or the published error. Pure."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping

from insula.admin.call import Call
from insula.model.block import VolumeSpec
from insula.model.errors import (
    PermissionDenied,
    ProtocolError,
    QubesException,
    QubesPropertyValueError,
    QubesValueError,
)
from insula.model.property_parsing import flag

_COUNT = re.compile(r"-1|0|[1-9][0-9]{0,8}")


def ascii_text(untrusted_payload: bytes, what: str) -> str:
    """:raise QubesValueError: a character outside ASCII (MC-102)."""
    try:
        return untrusted_payload.decode("ascii")
    except UnicodeDecodeError as error:
        raise QubesValueError(
            f"{what} must be ASCII; byte {error.start} is {untrusted_payload[error.start]:#x}"
        ) from None


def parse_words(untrusted_payload: bytes) -> Mapping[str, str]:
    """``key=value`` separated by single spaces. :raise ProtocolError: not of that form, or a key twice."""
    return _pairs(_protocol_text(untrusted_payload).split(" "))


def parse_option_lines(untrusted_payload: bytes) -> Mapping[str, str]:
    """``key=value`` lines. :raise ProtocolError: not of that form, or a key twice."""
    return _pairs(_protocol_text(untrusted_payload).rstrip("\n").split("\n"))


def parse_revisions_to_keep(untrusted_payload: bytes) -> int:
    """-1 (no snapshots) or more. :raise QubesValueError:"""
    untrusted_text = ascii_text(untrusted_payload, "revisions_to_keep")
    if not _COUNT.fullmatch(untrusted_text):
        raise QubesValueError(f"revisions_to_keep must be -1 or a number from 0 on, not {untrusted_text[:32]!a}")
    return int(untrusted_text)


def parse_flag(untrusted_payload: bytes, what: str) -> bool:
    """:raise QubesValueError: neither True nor False (nor another word for them, admin-api §3)."""
    try:
        return flag(ascii_text(untrusted_payload, what))
    except QubesPropertyValueError as error:
        raise QubesValueError(f"{what} {error}") from error


def volume_of(call: Call) -> VolumeSpec:
    """The volume named by the argument. :raise PermissionDenied: the qube has none of that name."""
    try:
        return call.dest.volumes[call.untrusted_arg]
    except KeyError:
        known = ", ".join(call.dest.volumes) or "none"
        raise PermissionDenied(
            f"Argument not in the volumes of {call.dest.name} ({known}): {call.untrusted_arg[:64]}"
        ) from None


async def exactly(untrusted_data: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """Pass on a stream that must have ``size`` bytes. :raise QubesException: it has more or fewer."""
    remaining = size
    async for untrusted_chunk in untrusted_data:
        remaining -= len(untrusted_chunk)
        if remaining < 0:
            raise QubesException(f"too much data: more than the {size} bytes announced")
        yield untrusted_chunk
    if remaining:
        raise QubesException(f"not enough data: {size - remaining} of {size} bytes")


def _protocol_text(untrusted_payload: bytes) -> str:
    try:
        return untrusted_payload.decode("ascii")
    except UnicodeDecodeError:
        raise ProtocolError("The payload must be ASCII") from None


def _pairs(untrusted_items: list[str]) -> Mapping[str, str]:
    values: dict[str, str] = {}
    for untrusted_item in untrusted_items:
        untrusted_key, separator, untrusted_value = untrusted_item.partition("=")
        if not separator or not untrusted_key:
            raise ProtocolError(f"Expected KEY=VALUE in the payload, got {untrusted_item[:64]!a}")
        if untrusted_key in values:
            raise ProtocolError(f"{untrusted_key[:64]!a} is given twice in the payload")
        values[untrusted_key] = untrusted_value
    return values
