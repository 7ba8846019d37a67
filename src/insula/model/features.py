"""Features: names with text values that a qube, its template or its guest advertises (admin-api §4).

A feature has three states: absent (ask the template or use the default), empty (false) and anything else (true).
Some names are delivered to the guest at start (:mod:`insula.model.services`) and have rules of their own, because what
cannot be delivered must be refused when it is set, not when the qube starts.
"""

from __future__ import annotations

import re
from enum import StrEnum

from insula.model import forwards
from insula.model.errors import PermissionDenied, ProtocolError, QubesFeatureNotFoundError, QubesValueError
from insula.model.names import ADMIN_NAME, QubeName
from insula.model.properties import PowerStates, reset_property, set_property, view
from insula.model.system import System
from insula_proto.forward import ForwardError, parse_forwards

MAX_FEATURE_NAME = 256
MAX_FEATURE_VALUE = 60_000
"""Characters; a request of 65536 bytes (admin-api §1) cannot carry much more."""
MAX_FEATURES = 2000
"""Features of one qube; ours."""
MAX_SERVICE_NAME = 48
MAX_CONFIG_NAME = 52
MAX_PERSIST_KEY = 54
"""admin-api §4, so that QubesDB keys stay within 63 bytes."""
MAX_DELIVERED_VALUE = 3072
"""Bytes of a QubesDB value (agent-services §11)."""

SERVICE = "service."
VM_CONFIG = "vm-config."
CUSTOM_PERSIST = "custom-persist."
MEMINFO_WRITER = "service.meminfo-writer"

PROTECTED = frozenset(
    {"deferred-netvm-original", "preload-dispvm", "preload-dispvm-completed", "preload-dispvm-in-progress"}
)
"""The system's own records; clients may not set them (admin-api §2, ``admin.vm.feature.Set``)."""

_FEATURE_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_CONFIG_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_PERSIST_VALUE = re.compile(r"((file|dir):[A-Za-z0-9_.-]+:[A-Za-z0-9_.-]+:0?[0-7]{3,4}:)?/[ -~]*")


class Lookup(StrEnum):
    """Where ``admin.vm.feature.CheckWith…`` goes on looking."""

    OWN = "own"
    TEMPLATE = "template"
    NETVM = "netvm"
    ADMINVM = "adminvm"
    TEMPLATE_AND_ADMINVM = "template+adminvm"


def parse_feature_name(untrusted_name: str) -> str:
    """Return the name if a feature may be called so.

    :raise ProtocolError: wrong length or alphabet.
    :raise QubesValueError: it would be delivered to the guest under a key that is too long or malformed.
    """
    if not 1 <= len(untrusted_name) <= MAX_FEATURE_NAME or not _FEATURE_NAME.fullmatch(untrusted_name):
        raise ProtocolError(f"A feature's name has 1 to {MAX_FEATURE_NAME} of A-Z a-z 0-9 _ . -")
    for prefix, limit in ((SERVICE, MAX_SERVICE_NAME), (VM_CONFIG, MAX_CONFIG_NAME), (CUSTOM_PERSIST, MAX_PERSIST_KEY)):
        rest = untrusted_name.removeprefix(prefix)
        if rest != untrusted_name and not 1 <= len(rest) <= limit:
            raise QubesValueError(f"After {prefix!r} there must be 1 to {limit} characters, not {len(rest)}")
    if untrusted_name.startswith(VM_CONFIG) and not _CONFIG_NAME.fullmatch(untrusted_name.removeprefix(VM_CONFIG)):
        raise QubesValueError(f"What follows {VM_CONFIG!r} must start with a letter")
    return untrusted_name


def parse_feature_value(name: str, untrusted_value: str) -> str:
    """Return the value if the feature ``name`` may have it.

    :raise ProtocolError: a character that is not printable ASCII, or too long.
    :raise QubesValueError: it would be delivered to the guest and cannot be.
    """
    if len(untrusted_value) > MAX_FEATURE_VALUE:
        raise ProtocolError(f"A feature's value has at most {MAX_FEATURE_VALUE} characters")
    if not all(" " <= character <= "~" for character in untrusted_value):
        raise ProtocolError(f"The value of feature {name} must be printable ASCII")
    if name.startswith((VM_CONFIG, CUSTOM_PERSIST)) and len(untrusted_value) > MAX_DELIVERED_VALUE:
        raise QubesValueError(f"The value of feature {name} has at most {MAX_DELIVERED_VALUE} characters")
    if name.startswith(CUSTOM_PERSIST) and not _PERSIST_VALUE.fullmatch(untrusted_value):
        raise QubesValueError(f"The value of feature {name} must be /PATH or file|dir:OWNER:GROUP:MODE:/PATH")
    if name == forwards.FEATURE:
        try:
            parse_forwards(untrusted_value)
        except ForwardError as error:
            raise QubesValueError(f"The value of feature {name}: {error}") from error
    return untrusted_value


def check_client_may_change(name: str) -> None:
    """:raise PermissionDenied: the feature is a record of the system's own."""
    if name in PROTECTED:
        raise PermissionDenied(f"Feature {name} is kept by the system")


def set_feature(system: System, qube_name: QubeName, name: str, value: str, power_state: PowerStates) -> System:
    """Set a feature; name and value must have been parsed.

    ``service.meminfo-writer`` is not stored: it says whether memory may be balanced, which is the property ``maxmem``
    (admin-api §4): false makes it 0, true gives it its default again.

    :raise QubesVMNotFoundError: :raise QubesValueError: too many features.
    """
    qube = system.get(qube_name)
    if name == MEMINFO_WRITER and qube.klass.has_machine:
        if value:
            return reset_property(system, qube_name, "maxmem", power_state)
        return set_property(system, qube_name, "maxmem", 0, power_state)
    if len(qube.features) >= MAX_FEATURES and name not in qube.features:
        raise QubesValueError(f"{qube_name} has {MAX_FEATURES} features already")
    return system.with_qube(qube.with_feature(name, value))


def remove_feature(system: System, qube_name: QubeName, name: str) -> System:
    """:raise QubesVMNotFoundError, QubesFeatureNotFoundError:"""
    qube = system.get(qube_name)
    if name not in qube.features:
        raise _not_found(qube_name, name)
    return system.with_qube(qube.without_feature(name))


def get_feature(system: System, qube_name: QubeName, name: str, lookup: Lookup = Lookup.OWN) -> str:
    """Value of a feature, the qube's own or found where ``lookup`` says.

    :raise QubesVMNotFoundError: :raise QubesFeatureNotFoundError: nobody on the way has it.
    """
    qube = system.get(qube_name)
    here = view(system, qube)
    match lookup:
        case Lookup.OWN | Lookup.ADMINVM:
            found = qube.features.get(name)
        case Lookup.NETVM:
            found = here.feature_from_netvm(name)
        case Lookup.TEMPLATE | Lookup.TEMPLATE_AND_ADMINVM:
            found = here.feature_from_template(name)
    if found is None and lookup in (Lookup.ADMINVM, Lookup.TEMPLATE_AND_ADMINVM):
        found = system.get(ADMIN_NAME).features.get(name)
    if found is None:
        raise _not_found(qube_name, name)
    return found


def _not_found(qube_name: QubeName, name: str) -> QubesFeatureNotFoundError:
    return QubesFeatureNotFoundError(f"{qube_name} has no feature {name[:MAX_FEATURE_NAME]!a}")
