"""Properties of qubes and of the system: reading, parsing, checking, setting (admin-api §3, §4).

Where what is::

    property_table       every definition, once
    property_parsing     text → value, one parser a kind
    property_defaults    default chains and computed values, on a property_view.View
    property_resolution  reading
    property_rules       what a new value must respect: other qubes, running machines
    properties           this module: the way in, and what else changes along with a property
    property_text        value ↔ wire text

All functions are pure; those that change something return a new :class:`System`.
"""

from __future__ import annotations

from dataclasses import dataclass

from insula.model.errors import QubesPropertyValueError, QubesValueError
from insula.model.klass import Klass
from insula.model.labels import parse_label_reference
from insula.model.names import QubeName, parse_qube_name
from insula.model.property_parsing import clean_text, flag
from insula.model.property_resolution import (
    NO_RUNTIME,
    default_of,
    definition,
    global_names,
    names_for,
    resolve,
    type_fits,
    view,
)
from insula.model.property_rules import Change, PowerStates, allows_disposables, check
from insula.model.property_table import PropertyDef
from insula.model.property_types import Access, PropertyType, Resolved, Runtime
from insula.model.property_view import View
from insula.model.qube import PropertyValue, Qube
from insula.model.system import System
from insula.model.tags import with_kept_tags
from insula.model.volumes import refreshed

__all__ = [
    "NO_RUNTIME",
    "Access",
    "PowerStates",
    "PropertyDef",
    "PropertyType",
    "Resolved",
    "Runtime",
    "View",
    "allows_disposables",
    "check_reset",
    "check_set",
    "default_of",
    "definition",
    "global_names",
    "names_for",
    "parse_value",
    "reset_property",
    "resolve",
    "set_property",
    "view",
]

CLOCKSYNC_FEATURE = "service.clocksync"
"""Moves to the qube that becomes ``clockvm`` (admin-api §4)."""
SERVICEVM_FEATURE = "servicevm"
"""Follows ``provides_network`` (admin-api §4)."""
_RESHAPING = frozenset({"template", "kernel", "default_kernel"})
"""Properties that volumes follow."""
_TAGGING = frozenset({"guivm", "audiovm", "relayvm", "default_guivm", "default_audiovm"})
"""Properties that tags follow."""


def parse_value(found: PropertyDef, untrusted_payload: str, system: System, qube: Qube | None) -> PropertyValue:
    """Parse what a client sent for a property; ``qube`` None for the system's.

    :raise QubesPropertyValueError: not a value of this property, or the property is read-only.
    :raise QubesValueError: the property is set at creation, once.
    :raise QubesLabelNotFoundError: for ``label``.
    """
    _check_writable(found, qube)
    try:
        untrusted_text = clean_text(untrusted_payload)
        match found.type:
            case PropertyType.BOOL:
                return flag(untrusted_text)
            case PropertyType.VM:
                return _parse_vm(found, untrusted_text, system)
            case PropertyType.LABEL:
                return parse_label_reference(untrusted_text, system.labels).name
            case PropertyType.STR | PropertyType.INT:
                assert found.parser is not None, found.name
                return found.parser(untrusted_text)
    except QubesPropertyValueError as error:
        raise QubesPropertyValueError(f"{_subject(found.name, qube)}: {error}") from error


def check_set(
    system: System,
    qube: Qube | None,
    name: str,
    value: PropertyValue,
    power_state: PowerStates,
    *,
    kernels: frozenset[str] | None = None,
) -> None:
    """Return if a property may get a value now. ``kernels``: those installed; None: not checked.

    :raise QubesNoSuchPropertyError, QubesPropertyValueError, QubesValueError:
    :raise QubesVMInUseError: others rely on the value it has.
    :raise QubesVMNotHaltedError, QubesVMNotStartedError: not while machines are as they are.
    """
    found = definition(None if qube is None else qube.klass, name)
    _check_writable(found, qube)
    if not type_fits(found, value):
        raise QubesPropertyValueError(f"{_subject(name, qube)}: {value!a} is not of type {found.type}")
    check(Change(system, _with_value(system, qube, name, value), qube, name, power_state, kernels))


def set_property(
    system: System,
    qube_name: QubeName | None,
    name: str,
    value: PropertyValue,
    power_state: PowerStates,
    *,
    kernels: frozenset[str] | None = None,
) -> System:
    """Set a property of a qube (None: of the system) and what follows it: tags, features, volumes.

    :raise QubesVMNotFoundError: no such qube; else as :func:`check_set`.
    """
    qube = None if qube_name is None else system.get(qube_name)
    check_set(system, qube, name, value, power_state, kernels=kernels)
    return _with_effects(system, _with_value(system, qube, name, value), qube, name)


def check_reset(system: System, qube: Qube | None, name: str, power_state: PowerStates) -> None:
    """Return if a property may go back to its default now. :raise: as :func:`check_set`."""
    found = definition(None if qube is None else qube.klass, name)
    _check_writable(found, qube)
    if found.default is None:
        raise QubesPropertyValueError(f"{_subject(name, qube)}: there is no default to go back to")
    check(Change(system, _without_value(system, qube, name), qube, name, power_state, None))


def reset_property(system: System, qube_name: QubeName | None, name: str, power_state: PowerStates) -> System:
    """Let a property have its default again; as :func:`set_property` otherwise."""
    qube = None if qube_name is None else system.get(qube_name)
    check_reset(system, qube, name, power_state)
    return _with_effects(system, _without_value(system, qube, name), qube, name)


@dataclass(frozen=True)
class _Following:
    """A qube's feature that is ``1`` while something holds and absent otherwise."""

    feature: str
    holds: bool

    def apply(self, system: System, name: QubeName) -> System:
        qube = system.get(name)
        if self.holds:
            return system.with_qube(qube.with_feature(self.feature, "1"))
        return system.with_qube(qube.without_feature(self.feature)) if self.feature in qube.features else system


def _with_effects(before: System, after: System, qube: Qube | None, name: str) -> System:
    """What else changes with a property (admin-api §4)."""
    if name in _RESHAPING:
        after = refreshed(after)
    if name in _TAGGING:
        after = with_kept_tags(after)
    if name == "provides_network" and qube is not None:
        provides = view(after, after.get(qube.name)).flag("provides_network")
        after = _Following(SERVICEVM_FEATURE, provides).apply(after, qube.name)
    if name == "clockvm":
        old, new = view(before, None).vm("clockvm"), view(after, None).vm("clockvm")
        if old is not None:
            after = _Following(CLOCKSYNC_FEATURE, holds=False).apply(after, old)
        if new is not None:
            after = _Following(CLOCKSYNC_FEATURE, holds=True).apply(after, new)
    return after


def _with_value(system: System, qube: Qube | None, name: str, value: PropertyValue) -> System:
    if qube is None:
        return system.with_property(name, value)
    if name == "label":
        return system.with_qube(qube.with_label(str(value)))
    return system.with_qube(qube.with_property(name, value))


def _without_value(system: System, qube: Qube | None, name: str) -> System:
    return system.without_property(name) if qube is None else system.with_qube(qube.without_property(name))


def _parse_vm(found: PropertyDef, untrusted_text: str, system: System) -> PropertyValue:
    if not untrusted_text:
        if not found.may_be_none:
            raise QubesPropertyValueError("must be a qube")
        return None
    try:
        name = parse_qube_name(untrusted_text)
    except QubesValueError as error:
        raise QubesPropertyValueError(str(error)) from error
    if name not in system.qubes:
        raise QubesPropertyValueError(f"no such qube: {name}")
    return name


def _check_writable(found: PropertyDef, qube: Qube | None) -> None:
    if found.access is Access.READ_ONLY:
        raise QubesPropertyValueError(f"{_subject(found.name, qube)} is read-only")
    if found.access is Access.WRITE_ONCE:
        raise QubesValueError(f"{_subject(found.name, qube)} was set when the qube was made and cannot change")
    if qube is not None and qube.klass is Klass.ADMINVM and found.name == "label":
        raise QubesPropertyValueError(f"{_subject(found.name, qube)} is fixed")


def _subject(name: str, qube: Qube | None) -> str:
    return f"Property {name}" if qube is None else f"Property {name} of {qube.name}"
