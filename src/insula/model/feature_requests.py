"""What a guest says that it supports (``qubes.FeaturesRequest``), and which features of its qube follow; pure.

The rules are the published ones (agent-services §6). A guest writes keys below ``/features-request/`` and then calls
the service; it can tell of itself only, in the words listed here, and whatever it says is its own claim. Only a qube
without a template speaks for a system; of one with a template only its own services count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date

from insula.model.errors import ProtocolError, QubesException
from insula.model.features import parse_feature_name, parse_feature_value, set_feature
from insula.model.klass import Klass
from insula.model.names import QubeName
from insula.model.properties import PowerStates
from insula.model.qube import Qube
from insula.model.system import System

PREFIX = "/features-request/"
"""Of the keys a guest writes."""
TOOLS_PREFIX = "/qubes-tools/"
TOOLS = ("qrexec", "gui")
MAX_REQUESTED = 1000
"""Features in one request: templates announce some dozens of services."""
MAX_BOOT_MODES = 64
"""Features that describe boot modes (published)."""

ONCE = ("qrexec", "gui", "gui-emulated")
"""Set by the first guest that says so; from then on they are the user's."""
ALWAYS = ("qubes-firewall", "vmexec")
SUPPORTED = ("supported-service.", "supported-feature.", "supported-rpc.")
"""Sets: what a request names replaces what an earlier one did; a request that names none changes none."""
SUPPORTED_RPC = "supported-rpc."
BOOT_MODE = "boot-mode."
KERNEL_OPTIONS = "boot-mode.kernelopts."
DESCRIBES_MODE = (KERNEL_OPTIONS, "boot-mode.name.", "boot-mode.default-user.")
DEFAULT_MODE = "default"
"""The mode every system has; its kernel options and user are not a guest's to say."""

_VALUE = re.compile(r"[A-Za-z0-9.,_= -]*")
_VERSION = re.compile(r"[0-9][0-9.-]*")
_AGENT_VERSION = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}")
_NUMBER = re.compile(rb"[0-9]{1,9}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_SYSTEMS = frozenset({"Linux", "Windows"})


@dataclass(frozen=True)
class Outcome:
    """What a request leads to."""

    system: System
    ignored: tuple[str, ...] = ()
    """Names of what was requested and not taken, sorted."""
    is_first: bool = False
    """Whether the qube said for the first time that it can run commands (published: ``template-postinstall``)."""


def parse_request(untrusted_keys: Mapping[str, bytes]) -> dict[str, str]:
    """Features requested by keys of a guest, name → value; other keys are not looked at.

    :raise ProtocolError: a value with another character, or too many: nothing of the request counts.
    """
    requested = {}
    for path, untrusted_value in untrusted_keys.items():
        if not path.startswith(PREFIX):
            continue
        untrusted_text = untrusted_value.decode("ascii", "replace")
        if not _VALUE.fullmatch(untrusted_text):
            raise ProtocolError("A requested feature's value has other characters than A-Z a-z 0-9 . , _ = - and blank")
        requested[path.removeprefix(PREFIX)] = untrusted_text
        if len(requested) > MAX_REQUESTED:
            raise ProtocolError(f"More than {MAX_REQUESTED} features are requested")
    return requested


def parse_tools(untrusted_keys: Mapping[str, bytes]) -> dict[str, str]:
    """What older tools say by keys below ``/qubes-tools/`` (``qubes.NotifyTools``), as requested features.

    :raise ProtocolError: a value that is no number. Without a version they say nothing.
    """
    values = {}
    for name in ("version", *TOOLS):
        untrusted_value = untrusted_keys.get(f"{TOOLS_PREFIX}{name}")
        if untrusted_value is not None:
            if not _NUMBER.fullmatch(untrusted_value):
                raise ProtocolError(f"{TOOLS_PREFIX}{name} is no number")
            values[name] = int(untrusted_value)
    return {name: str(int(values.get(name, 0) > 0)) for name in TOOLS} if "version" in values else {}


def apply_request(system: System, name: QubeName, requested: Mapping[str, str], power_state: PowerStates) -> Outcome:
    """Take what a qube may say of itself; ``requested`` comes from :func:`parse_request`.

    :raise QubesVMNotFoundError: :raise QubesValueError: it has too many features.
    """
    qube = system.get(name)
    taken: dict[str, str | None] = {}
    if qube.template is None:
        taken.update(_plain(qube, requested))
        taken.update(_boot_modes(qube, requested))
        for prefix in SUPPORTED:
            taken.update(_supported(qube, requested, prefix))
    else:
        taken.update(_supported(qube, requested, SUPPORTED_RPC))
    is_first = not qube.features.get("qrexec") and taken.get("qrexec") == "1"
    changed = qube
    for feature, value in taken.items():
        if value is None:
            changed = changed.without_feature(feature)
        else:
            new = system.with_qube(changed) if changed is not qube else system
            changed = set_feature(new, name, feature, value, power_state).get(name)
    ignored = sorted(feature for feature in requested if feature not in taken)
    return Outcome(system.with_qube(changed) if changed is not qube else system, tuple(ignored), is_first)


def _plain(qube: Qube, requested: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Features that stand for themselves."""
    for feature, value in requested.items():
        if feature in ONCE:
            if value in ("0", "1") and feature not in qube.features:
                yield feature, _flag(value)
        elif feature in ALWAYS:
            if value in ("0", "1"):
                yield feature, _flag(value)
        elif _is_description(feature, value):
            yield feature, value


def _is_description(feature: str, value: str) -> bool:
    """Whether it describes the system, in a form that can be."""
    match feature:
        case "os":
            return value in _SYSTEMS
        case "os-distribution" | "os-distribution-like":
            return value != ""
        case "os-version":
            return _VERSION.fullmatch(value) is not None
        case "os-eol":
            return _is_date(value)
        case "qubes-agent-version":
            return _AGENT_VERSION.fullmatch(value) is not None
        case "anon-timezone":
            # A guest may hide its zone; showing it again is not the guest's to say.
            return value == "1"
    return False


def _is_date(text: str) -> bool:
    if not _DATE.fullmatch(text):
        return False
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _flag(value: str) -> str:
    """As features say it: 1, or empty for no."""
    return "1" if value == "1" else ""


def _is_feature(name: str, value: str) -> bool:
    try:
        parse_feature_value(parse_feature_name(name), value)
    except (ProtocolError, QubesException):
        return False
    return True


def _supported(qube: Qube, requested: Mapping[str, str], prefix: str) -> dict[str, str | None]:
    """The set below a prefix, and what it replaces."""
    new = {
        feature
        for feature, value in requested.items()
        if feature.startswith(prefix) and feature != prefix and value == "1" and _is_feature(feature, value)
    }
    if not new:
        return {}
    old = {feature for feature in qube.features if feature.startswith(prefix)}
    return {**dict.fromkeys(new, "1"), **dict.fromkeys(old - new)}


def _mode_of(feature: str) -> str:
    """Name of the mode a feature ``boot-mode.WHAT.NAME`` describes; empty: it is none of these."""
    if not feature.startswith(DESCRIBES_MODE):
        return ""
    parts = feature.split(".")
    return parts[2] if len(parts) == 3 else ""


def _boot_modes(qube: Qube, requested: Mapping[str, str]) -> dict[str, str | None]:
    """Descriptions of boot modes, all or none of them, and which one is the default."""
    known = {
        _mode_of(feature) for feature in requested if feature.startswith(KERNEL_OPTIONS)
    } - {"", DEFAULT_MODE}  # fmt: skip
    described: dict[str, str] = {}
    names: list[str] = []
    for feature, value in requested.items():
        mode = _mode_of(feature)
        is_name = feature.startswith("boot-mode.name.")
        if (mode not in known and not (mode == DEFAULT_MODE and is_name)) or not _is_feature(feature, value):
            continue
        described[feature] = value
        if not feature.startswith(KERNEL_OPTIONS):
            names.append(value)
    taken: dict[str, str | None] = {}
    if described and len(described) <= MAX_BOOT_MODES and len(names) == len(set(names)):
        old = [feature for feature in qube.features if feature.startswith(DESCRIBES_MODE)]
        taken = {**dict.fromkeys(old), **described}
    now = {**qube.features, **taken}
    for feature in ("boot-mode.active", "boot-mode.appvm-default", "boot-mode.standalone-default"):
        chosen = requested.get(feature)
        if chosen is None or (feature == "boot-mode.appvm-default" and qube.klass is not Klass.TEMPLATEVM):
            continue
        if chosen == DEFAULT_MODE or now.get(KERNEL_OPTIONS + chosen) is not None:
            taken[feature] = chosen
    return taken
