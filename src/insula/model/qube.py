"""A qube as configured: one frozen value.

It holds what somebody set, nothing that follows from something else: defaults are resolved by
:mod:`insula.model.properties`, the running machine is the business of ``lifecycle``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from uuid import UUID

from insula.model.block import VolumeSpec
from insula.model.errors import QubesValueError
from insula.model.frozen import freeze, with_item, without_item
from insula.model.klass import Klass
from insula.model.names import ADMIN_NAME, QubeName
from insula_proto.firewall import ACCEPT, Rule

PropertyValue = str | int | bool | None
"""Value of a property. Qubes and labels are their names; None is "no qube" or "no value"."""

MAX_QID = 10000
"""admin-api §4."""
DEFAULT_FIREWALL = (Rule(ACCEPT),)
"""Rules of a new qube (admin-api §7)."""
MAX_NOTES = 256_000
"""Bytes of UTF-8; admin-api §1."""


@dataclass(frozen=True)
class Qube:
    name: QubeName
    klass: Klass
    qid: int
    """0 for dom0, else 1…10000; unique. Addresses follow from it."""
    uuid: UUID
    """Never given to another qube, unlike name and qid."""
    label: str
    """Name of a label of the system."""
    properties: Mapping[str, PropertyValue] = field(default_factory=dict)
    """Set ones only, ``template`` and ``netvm`` included; parsed (see :mod:`insula.model.properties`)."""
    features: Mapping[str, str] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()
    volumes: Mapping[str, VolumeSpec] = field(default_factory=dict)
    notes: str = ""
    firewall: tuple[Rule, ...] = DEFAULT_FIREWALL
    """What the qube may reach; after the last rule it may nothing."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "properties", freeze(self.properties))
        object.__setattr__(self, "features", freeze(self.features))
        object.__setattr__(self, "volumes", freeze(self.volumes))
        object.__setattr__(self, "tags", frozenset(self.tags))

    @property
    def template(self) -> QubeName | None:
        """The qube this one is based on; None for classes without template."""
        value = self.properties.get("template")
        return QubeName(value) if isinstance(value, str) else None

    @property
    def is_admin(self) -> bool:
        return self.klass is Klass.ADMINVM

    def with_property(self, name: str, value: PropertyValue) -> Qube:
        """No checks; see :func:`insula.model.properties.set_property`."""
        return replace(self, properties=with_item(self.properties, name, value))

    def without_property(self, name: str) -> Qube:
        return replace(self, properties=without_item(self.properties, name))

    def with_feature(self, name: str, value: str) -> Qube:
        """No checks; see :func:`insula.model.features.set_feature`."""
        return replace(self, features=with_item(self.features, name, value))

    def without_feature(self, name: str) -> Qube:
        return replace(self, features=without_item(self.features, name))

    def with_tags(self, added: Iterable[str]) -> Qube:
        return replace(self, tags=self.tags | frozenset(added))

    def without_tags(self, removed: Iterable[str]) -> Qube:
        return replace(self, tags=self.tags - frozenset(removed))

    def with_volume(self, volume: VolumeSpec) -> Qube:
        return replace(self, volumes=with_item(self.volumes, volume.name, volume))

    def with_label(self, label: str) -> Qube:
        return replace(self, label=label)

    def with_firewall(self, rules: Iterable[Rule]) -> Qube:
        return replace(self, firewall=tuple(rules))

    def with_notes(self, notes: str) -> Qube:
        """``notes`` must have passed :func:`parse_notes`."""
        return replace(self, notes=notes)


def admin_qube() -> Qube:
    """``dom0`` as it is on a new system (admin-api §4: qid 0, uuid all zeros)."""
    return Qube(name=ADMIN_NAME, klass=Klass.ADMINVM, qid=0, uuid=UUID(int=0), label="black")


def parse_notes(untrusted_notes: bytes) -> str:
    """Decode notes; characters unsafe to display become ``_`` (admin-api §2, ``admin.vm.notes.Set``).

    :raise QubesValueError: not UTF-8, or longer than :data:`MAX_NOTES`.
    """
    if len(untrusted_notes) > MAX_NOTES:
        raise QubesValueError(f"Notes have at most {MAX_NOTES} bytes, these {len(untrusted_notes)}")
    try:
        untrusted_text = untrusted_notes.decode("utf-8")
    except UnicodeDecodeError as error:
        raise QubesValueError("Notes must be UTF-8 text") from error
    return "".join(c if c in "\t\n" or c.isprintable() else "_" for c in untrusted_text)
