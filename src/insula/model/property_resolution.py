"""Reading properties: which exist for what, and what value each has now."""

from __future__ import annotations

from insula.model.errors import QubesNoSuchPropertyError
from insula.model.klass import Klass
from insula.model.property_table import GLOBAL_PROPERTIES, QUBE_PROPERTIES, PropertyDef
from insula.model.property_types import Access, PropertyType, Resolved, Runtime
from insula.model.property_view import View
from insula.model.qube import PropertyValue, Qube
from insula.model.system import System

NO_RUNTIME = Runtime()


def definition(klass: Klass | None, untrusted_name: str) -> PropertyDef:
    """Find a property of a class of qubes, or of the system (None).

    :raise QubesNoSuchPropertyError:
    """
    if klass is None:
        found = GLOBAL_PROPERTIES.get(untrusted_name)
    else:
        found = next((d for d in QUBE_PROPERTIES.get(untrusted_name, ()) if klass in d.classes), None)
    if found is None:
        owner = "The system has" if klass is None else f"A qube of class {klass} has"
        raise QubesNoSuchPropertyError(f"{owner} no property {untrusted_name[:64]!a}")
    return found


def names_for(klass: Klass) -> list[str]:
    """Names of the properties that qubes of a class have, in the table's order."""
    return [name for name, definitions in QUBE_PROPERTIES.items() if any(klass in d.classes for d in definitions)]


def global_names() -> list[str]:
    return list(GLOBAL_PROPERTIES)


def resolve(system: System, qube: Qube | None, name: str, runtime: Runtime = NO_RUNTIME) -> Resolved:
    """Effective value of a property of a qube, or of the system (``qube`` None).

    :raise QubesNoSuchPropertyError:
    """
    return _resolve(view(system, qube, runtime), name)


def default_of(system: System, qube: Qube | None, name: str, runtime: Runtime = NO_RUNTIME) -> Resolved | None:
    """What :func:`resolve` would give after a reset; None if there is no default (set once, or computed).

    :raise QubesNoSuchPropertyError:
    """
    found = definition(None if qube is None else qube.klass, name)
    if found.default is None or found.access is Access.READ_ONLY:
        return None
    return Resolved(found.default(view(system, qube, runtime)), is_default=True, type=found.type)


def view(system: System, qube: Qube | None, runtime: Runtime = NO_RUNTIME) -> View:
    """All properties of a qube (None: of the system), to be read with their types: ``view(…).number("memory")``."""
    return View(system, qube, runtime, _value)


def _value(here: View, name: str) -> PropertyValue:
    return _resolve(here, name).value


def _resolve(here: View, name: str) -> Resolved:
    qube = here.qube
    found = definition(None if qube is None else qube.klass, name)
    if qube is not None and name in _FIELDS:
        return Resolved(_field(qube, name), is_default=False, type=found.type)
    explicit = here.system.properties if qube is None else qube.properties
    if name in explicit and found.access is not Access.READ_ONLY:
        return Resolved(explicit[name], is_default=False, type=found.type)
    value = None if found.default is None else found.default(here)
    return Resolved(value, is_default=True, type=found.type)


_FIELDS = frozenset({"name", "qid", "uuid", "label"})
"""Properties that are fields of :class:`Qube`."""


def _field(qube: Qube, name: str) -> PropertyValue:
    if name == "uuid":
        return str(qube.uuid)
    if name == "qid":
        return qube.qid
    return qube.label if name == "label" else qube.name


def type_fits(found: PropertyDef, value: PropertyValue) -> bool:
    """Whether a stored value is of the type its definition says (``bool`` is not an ``int`` here)."""
    if value is None:
        return found.type is PropertyType.VM and found.may_be_none
    python_type = {PropertyType.INT: int, PropertyType.BOOL: bool}.get(found.type, str)
    return type(value) is python_type
