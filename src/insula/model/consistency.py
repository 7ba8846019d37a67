"""Whether a :class:`System` is one that could have come about: what the store demands of what it keeps and reads.

Setting things checks what a user asked for; this checks the result as a whole, so that neither an error of ours nor
a state file edited by hand puts references to nothing, values of another type or malformed names into the system.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from uuid import UUID

from insula.model.errors import InsulaError
from insula.model.features import parse_feature_name, parse_feature_value
from insula.model.klass import Klass
from insula.model.labels import parse_label_name
from insula.model.names import ADMIN_NAME, parse_qube_name
from insula.model.property_parsing import clean_text
from insula.model.property_resolution import definition, type_fits
from insula.model.property_types import GLOBAL_VM_PROPERTIES, VM_PROPERTIES, Access
from insula.model.qube import MAX_NOTES, MAX_QID, PropertyValue, Qube
from insula.model.system import System
from insula.model.tags import parse_tag

_IN_FIELDS = frozenset({"name", "qid", "uuid", "label"})


def problems(system: System, since: System | None = None) -> list[str]:
    """All that is wrong, one sentence each; empty if nothing is.

    Values of qubes that are the very objects of ``since`` (a system found consistent before) are not looked at again;
    references between qubes always are.
    """
    found = [*_about_dom0(system), *_about_duplicates(system)]
    for key, qube in system.qubes.items():
        if key != qube.name:
            found.append(f"{qube.name} is kept as {key!a}")
        if since is None or since.qubes.get(key) is not qube:
            found += (f"{qube.name}: {problem}" for problem in _about_values(qube))
        found += (f"{qube.name}: {problem}" for problem in _about_references(system, qube))
    found += _about_properties(None, system.properties)
    found += _about_vms(system, system.properties, GLOBAL_VM_PROPERTIES)
    for label in system.labels.values():
        found += _refused(parse_label_name, label.name)
    return found


def _about_dom0(system: System) -> Iterator[str]:
    admin = system.qubes.get(ADMIN_NAME)
    if admin is None or (admin.klass, admin.qid, admin.uuid) != (Klass.ADMINVM, 0, UUID(int=0)):
        yield "there is no dom0, or it is not as it must be"
    others = [q for q in system.qubes.values() if q.name != ADMIN_NAME]
    if any(q.klass is Klass.ADMINVM or not 1 <= q.qid <= MAX_QID for q in others):
        yield "a qube has the class or the number of dom0, or a number out of range"


def _about_duplicates(system: System) -> Iterator[str]:
    qubes = system.qubes.values()
    for what, values in (
        ("number", [qube.qid for qube in qubes]),
        ("UUID", [qube.uuid for qube in qubes]),
        ("name, but for upper and lower case,", [qube.name.lower() for qube in qubes]),
        ("label index", [label.index for label in system.labels.values()]),
    ):
        if len(set(values)) != len(values):
            yield f"the same {what} is there twice"


def _about_values(qube: Qube) -> Iterator[str]:
    yield from _refused(parse_qube_name, qube.name)
    yield from _about_properties(qube.klass, qube.properties)
    for name, value in qube.features.items():
        yield from _refused(_parse_feature, name, value)
    for tag in qube.tags:
        yield from _refused(parse_tag, tag)
    try:
        if len(qube.notes.encode("utf-8")) > MAX_NOTES:
            yield f"notes are longer than {MAX_NOTES} bytes"
    except UnicodeEncodeError:
        yield "notes are not text"
    for name, volume in qube.volumes.items():
        if name != volume.name:
            yield f"volume {volume.name} is kept as {name!a}"
        if volume.snap_on_start != (volume.source is not None):
            yield f"volume {name} must have a source exactly if it is a snapshot"
        if volume.size < 0 or volume.revisions_to_keep < -1:
            yield f"volume {name} has a negative size or number of revisions"


def _about_properties(klass: Klass | None, properties: Mapping[str, PropertyValue]) -> Iterator[str]:
    for name, value in properties.items():
        try:
            found = definition(klass, name)
            if found.access is Access.READ_ONLY or (klass is not None and name in _IN_FIELDS):
                yield f"property {name} cannot be set"
            if not type_fits(found, value):
                yield f"property {name}: {value!a} is not of type {found.type}"
            elif isinstance(value, str):
                clean_text(value)
        except InsulaError as error:
            yield f"property {name!a}: {error}"


def _about_references(system: System, qube: Qube) -> Iterator[str]:
    if qube.label not in system.labels:
        yield f"there is no label {qube.label!a}"
    if qube.klass.has_template and qube.template is None:
        yield "it has no template"
    yield from _about_vms(system, qube.properties, VM_PROPERTIES)
    for volume in qube.volumes.values():
        if volume.pool not in system.pools:
            yield f"volume {volume.name} is in pool {volume.pool!a}, which does not exist"


def _about_vms(system: System, properties: Mapping[str, PropertyValue], names: frozenset[str]) -> Iterator[str]:
    for name in properties.keys() & names:
        value = properties[name]
        if value is not None and value not in system.qubes:
            yield f"property {name} is {value!a}, which does not exist"


def _parse_feature(name: str, value: str) -> None:
    parse_feature_value(parse_feature_name(name), value)


def _refused(parse: Callable[..., object], *untrusted_texts: str) -> Iterator[str]:
    try:
        parse(*untrusted_texts)
    except InsulaError as error:
        yield str(error)
