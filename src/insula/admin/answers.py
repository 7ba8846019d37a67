"""Answers of the Admin API as values: what the client makes of the text the server sends.

Pure parsing. Anything that does not have the published shape raises :class:`MalformedAnswer`, so a newer or
broken server gives one clear error instead of an index or key error somewhere in a tool.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from insula.model.state import PowerState


class MalformedAnswer(Exception):
    """The server answered something the published protocol does not have."""


@dataclass(frozen=True)
class QubeRow:
    """One line of ``admin.vm.List``."""

    name: str
    klass: str
    state: PowerState
    uuid: UUID


@dataclass(frozen=True)
class CurrentState:
    """Answer of ``admin.vm.CurrentState``."""

    power_state: PowerState
    memory_kib: int
    memory_static_max_kib: int
    cpu_time_ms: int


@dataclass(frozen=True)
class PropertyValue:
    name: str
    is_default: bool
    type: str
    """``str``, ``int``, ``bool``, ``vm`` or ``label``."""
    value: str
    """As text; what empty means depends on the type (admin-api §3)."""


@dataclass(frozen=True)
class VolumeInfo:
    """Answer of ``admin.vm.volume.Info``; sizes in bytes."""

    pool: str
    vid: str
    size: int
    usage: int
    rw: bool
    source: str
    """vid this one is a snapshot of; empty: of none."""
    save_on_stop: bool
    snap_on_start: bool
    revisions_to_keep: int
    ephemeral: bool
    is_outdated: bool


@dataclass(frozen=True)
class PoolInfo:
    """Answer of ``admin.pool.Info``."""

    name: str
    driver: str
    config: Mapping[str, str]
    """Everything else the pool says about its configuration."""
    size: int | None
    """Bytes it can hold; None if it cannot say."""
    usage: int | None


def parse_lines(untrusted_answer: bytes) -> list[str]:
    """One item a line, each line newline-terminated."""
    untrusted_text = parse_text(untrusted_answer)
    if untrusted_text and not untrusted_text.endswith("\n"):
        raise MalformedAnswer("a list does not end in a newline")
    return untrusted_text.split("\n")[:-1]


def parse_text(untrusted_answer: bytes) -> str:
    try:
        return untrusted_answer.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedAnswer("an answer is not UTF-8") from error


def parse_qubes(untrusted_answer: bytes) -> list[QubeRow]:
    rows = []
    for line in parse_lines(untrusted_answer):
        name, *items = line.split(" ")
        values = _pairs(items)
        rows.append(QubeRow(name, _need(values, "class"), _state(_need(values, "state")), _uuid(_need(values, "uuid"))))
    return rows


def parse_current_state(untrusted_answer: bytes) -> CurrentState:
    values = _pairs(parse_text(untrusted_answer).split(" "))
    return CurrentState(
        power_state=_state(_need(values, "power_state")),
        memory_kib=_number(_need(values, "mem")),
        memory_static_max_kib=_number(_need(values, "mem_static_max")),
        cpu_time_ms=_number(_need(values, "cputime")),
    )


_PROPERTY = re.compile(r"default=(True|False) type=([a-z]+) (.*)", re.DOTALL)


def parse_property(name: str, untrusted_answer: bytes) -> PropertyValue:
    match = _PROPERTY.fullmatch(parse_text(untrusted_answer))
    if match is None:
        raise MalformedAnswer(f"property {name!r} has no readable value")
    return PropertyValue(name, match[1] == "True", match[2], match[3])


def parse_properties(untrusted_answer: bytes) -> list[PropertyValue]:
    """Answer of ``GetAll``: what follows the name is escaped (``\\\\``, ``\\n``)."""
    values = []
    for line in parse_lines(untrusted_answer):
        name, _, rest = line.partition(" ")
        values.append(parse_property(name, _unescape(rest).encode()))
    return values


def parse_volume(untrusted_answer: bytes) -> VolumeInfo:
    values = _pairs(parse_lines(untrusted_answer))
    return VolumeInfo(
        pool=_need(values, "pool"),
        vid=_need(values, "vid"),
        size=_number(_need(values, "size")),
        usage=_number(_need(values, "usage")),
        rw=_flag(_need(values, "rw")),
        source=_need(values, "source"),
        save_on_stop=_flag(_need(values, "save_on_stop")),
        snap_on_start=_flag(_need(values, "snap_on_start")),
        revisions_to_keep=_number(_need(values, "revisions_to_keep")),
        ephemeral=_flag(values.get("ephemeral", "False")),
        is_outdated=_flag(values.get("is_outdated", "False")),
    )


def parse_pool(untrusted_answer: bytes) -> PoolInfo:
    values = dict(_pairs(parse_lines(untrusted_answer)))
    name, driver = _need(values, "name"), _need(values, "driver")
    size, usage = (values.pop(key, None) for key in ("size", "usage"))
    return PoolInfo(
        name=name,
        driver=driver,
        config={key: value for key, value in values.items() if key not in ("name", "driver")},
        size=None if size is None else _number(size),
        usage=None if usage is None else _number(usage),
    )


def _pairs(items: Iterable[str]) -> Mapping[str, str]:
    values: dict[str, str] = {}
    for item in items:
        key, separator, value = item.partition("=")
        if not separator or key in values:
            raise MalformedAnswer(f"expected key=value once, got {item!a}")
        values[key] = value
    return values


def _need(values: Mapping[str, str], key: str) -> str:
    if key not in values:
        raise MalformedAnswer(f"an answer lacks {key!r}")
    return values[key]


def _number(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,19}", text):
        raise MalformedAnswer(f"not a number: {text!a}")
    return int(text)


def _flag(text: str) -> bool:
    if text not in ("True", "False"):
        raise MalformedAnswer(f"neither True nor False: {text!a}")
    return text == "True"


def _state(text: str) -> PowerState:
    try:
        return PowerState(text)
    except ValueError as error:
        raise MalformedAnswer(f"not a power state: {text!a}") from error


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise MalformedAnswer(f"not a UUID: {text!a}") from error


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], text)
