"""All that is configured on a host, as one frozen value.

Every change makes a new :class:`System`; the old one stays what it was. So whoever holds one may read it without
locks, and a change is kept by handing the new value to :class:`insula.store.store.Store`. Methods here keep names,
references and numbers straight; the meaning of properties is in :mod:`insula.model.properties`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from uuid import UUID

from insula.model.errors import (
    QubesException,
    QubesLabelInUseError,
    QubesLabelNotFoundError,
    QubesPoolInUseError,
    QubesPoolNotFoundError,
    QubesVMAlreadyExistsError,
    QubesVMInUseError,
    QubesVMNotFoundError,
)
from insula.model.frozen import freeze, with_item, without_item
from insula.model.klass import Klass
from insula.model.labels import BUILTIN_LABELS, Label
from insula.model.names import ADMIN_NAME, QubeName
from insula.model.property_types import GLOBAL_VM_PROPERTIES, VM_PROPERTIES
from insula.model.qube import MAX_QID, PropertyValue, Qube, admin_qube

MAX_DISPID = 9999
"""admin-api §4."""


@dataclass(frozen=True)
class PoolConfig:
    name: str
    driver: str
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", freeze(self.options))


@dataclass(frozen=True)
class Dependency:
    """One reason why a qube cannot go: ``user`` (None: the system itself) refers to it in ``property``."""

    user: QubeName | None
    property: str

    def __str__(self) -> str:
        if self.user is None:
            return f"it is the system's {self.property}"
        return f"it is the {self.property} of {self.user}"


def _admin_only() -> Mapping[QubeName, Qube]:
    return {ADMIN_NAME: admin_qube()}


@dataclass(frozen=True)
class System:
    qubes: Mapping[QubeName, Qube] = field(default_factory=_admin_only)
    """dom0 is always there."""
    labels: Mapping[str, Label] = field(default_factory=lambda: BUILTIN_LABELS)
    pools: Mapping[str, PoolConfig] = field(default_factory=dict)
    properties: Mapping[str, PropertyValue] = field(default_factory=dict)
    """Global ones that were set."""

    def __post_init__(self) -> None:
        for name in ("qubes", "labels", "pools", "properties"):
            object.__setattr__(self, name, freeze(getattr(self, name)))

    # queries

    def get(self, name: str) -> Qube:
        """:raise QubesVMNotFoundError:"""
        try:
            return self.qubes[QubeName(name)]
        except KeyError:
            raise QubesVMNotFoundError(f"No such qube: {name!a}") from None

    def by_uuid(self, uuid: UUID) -> Qube:
        """:raise QubesVMNotFoundError:"""
        for qube in self.qubes.values():
            if qube.uuid == uuid:
                return qube
        raise QubesVMNotFoundError(f"No qube has the UUID {uuid}")

    def sorted_qubes(self) -> list[Qube]:
        """dom0 first, the others by name (order of ``admin.vm.List``)."""
        return sorted(self.qubes.values(), key=lambda qube: (not qube.is_admin, qube.name))

    def template_of(self, qube: Qube) -> Qube | None:
        return None if qube.template is None else self.get(qube.template)

    def based_on(self, template: QubeName) -> list[Qube]:
        """Qubes whose ``template`` is this one, directly."""
        return [qube for qube in self.qubes.values() if qube.template == template]

    def appvms_of(self, template: QubeName) -> list[Qube]:
        """App qubes whose ``template`` is this one."""
        return [qube for qube in self.based_on(template) if qube.klass is Klass.APPVM]

    def dependents(self, name: QubeName) -> list[Dependency]:
        """Everything that refers to a qube by a property that was set; references to itself do not count."""
        found = [Dependency(None, prop) for prop in sorted(GLOBAL_VM_PROPERTIES) if self.properties.get(prop) == name]
        for qube in self.sorted_qubes():
            if qube.name != name:
                found += [
                    Dependency(qube.name, prop)
                    for prop, value in qube.properties.items()
                    if prop in VM_PROPERTIES and value == name
                ]
        return found

    def label(self, name: str) -> Label:
        """:raise QubesLabelNotFoundError:"""
        try:
            return self.labels[name]
        except KeyError:
            raise QubesLabelNotFoundError(f"No such label: {name!a}") from None

    def pool(self, name: str) -> PoolConfig:
        """:raise QubesPoolNotFoundError:"""
        try:
            return self.pools[name]
        except KeyError:
            raise QubesPoolNotFoundError(f"No such pool: {name!a}") from None

    def pool_users(self, name: str) -> list[QubeName]:
        """Qubes with a volume in the pool."""
        return [q.name for q in self.sorted_qubes() if any(v.pool == name for v in q.volumes.values())]

    def free_qid(self) -> int:
        """The lowest free number. :raise QubesException: all are taken."""
        taken = {qube.qid for qube in self.qubes.values()}
        for qid in range(1, MAX_QID + 1):
            if qid not in taken:
                return qid
        raise QubesException(f"There are {MAX_QID} qubes already; no number is left for one more")

    def free_dispid(self, wish: int) -> int:
        """``wish`` (take a random one) or the next number no disposable has, such that ``dispN`` is free as well.

        :raise QubesException: all are taken.
        """
        taken = {qube.properties.get("dispid") for qube in self.qubes.values()}
        for step in range(MAX_DISPID + 1):
            dispid = (wish + step) % (MAX_DISPID + 1)
            if dispid not in taken and QubeName(f"disp{dispid}") not in self.qubes:
                return dispid
        raise QubesException(f"There are {MAX_DISPID + 1} disposables already; no number is left for one more")

    # qubes

    def with_qube(self, qube: Qube) -> System:
        """Add a qube or replace the one of that name."""
        return replace(self, qubes=with_item(self.qubes, qube.name, qube))

    def with_new_qube(self, qube: Qube) -> System:
        """Add a qube. Names that differ only by case could be taken for each other and are refused (MC-19).

        :raise QubesVMAlreadyExistsError: name, number or UUID is taken.
        """
        for other in self.qubes.values():
            if other.name.lower() == qube.name.lower():
                raise QubesVMAlreadyExistsError(f"There is a qube named {other.name} already")
            if other.qid == qube.qid or other.uuid == qube.uuid:
                raise QubesVMAlreadyExistsError(f"{other.name} has the same number or UUID as {qube.name}")
        return self.with_qube(qube)

    def with_qubes(self, qubes: Iterable[Qube]) -> System:
        """Add or replace several."""
        return replace(self, qubes={**self.qubes, **{qube.name: qube for qube in qubes}})

    def without_qube(self, name: QubeName) -> System:
        """:raise QubesVMNotFoundError, QubesVMInUseError: it is dom0, a package's, or referred to."""
        qube = self.get(name)
        if qube.is_admin:
            raise QubesVMInUseError(f"{name} is the system itself and cannot be removed")
        if qube.properties.get("installed_by_rpm") is True:
            raise QubesVMInUseError(f"{name} belongs to an installed package; remove that package instead")
        dependents = self.dependents(name)
        if dependents:
            raise QubesVMInUseError(f"{name} is in use: {'; '.join(map(str, dependents))}")
        return replace(self, qubes=without_item(self.qubes, name))

    # the rest

    def with_property(self, name: str, value: PropertyValue) -> System:
        """Set a global property. No checks; see :func:`insula.model.properties.set_property`."""
        return replace(self, properties=with_item(self.properties, name, value))

    def without_property(self, name: str) -> System:
        return replace(self, properties=without_item(self.properties, name))

    def with_label(self, label: Label) -> System:
        """:raise QubesLabelInUseError: name or index is taken."""
        for other in self.labels.values():
            if other.name == label.name or other.index == label.index:
                raise QubesLabelInUseError(f"There is a label {other.name} with index {other.index} already")
        return replace(self, labels=with_item(self.labels, label.name, label))

    def without_label(self, name: str) -> System:
        """Built-in ones are the caller's to refuse. :raise QubesLabelNotFoundError, QubesLabelInUseError:"""
        self.label(name)
        users = [qube.name for qube in self.sorted_qubes() if qube.label == name]
        if users:
            raise QubesLabelInUseError(f"Label {name} is used by {', '.join(users)}")
        return replace(self, labels=without_item(self.labels, name))

    def with_pool(self, pool: PoolConfig) -> System:
        """Add a pool or replace the one of that name."""
        return replace(self, pools=with_item(self.pools, pool.name, pool))

    def without_pool(self, name: str) -> System:
        """:raise QubesPoolNotFoundError, QubesPoolInUseError: a volume is in it, or a global property names it."""
        self.pool(name)
        users = [*self.pool_users(name), *(p for p, v in self.properties.items() if "pool" in p and v == name)]
        if users:
            raise QubesPoolInUseError(f"Pool {name} is used by {', '.join(users)}")
        return replace(self, pools=without_item(self.pools, name))
