"""Hypothesis strategies for values of the model: anything that may be configured, not only what is usual."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from insula.model.block import VolumeSpec
from insula.model.errors import QubesValueError
from insula.model.klass import Klass
from insula.model.labels import BUILTIN_LABELS, Label
from insula.model.names import ADMIN_NAME, QubeName, parse_qube_name
from insula.model.properties import Access, PropertyDef, PropertyType, definition, global_names, names_for
from insula.model.qube import PropertyValue, Qube, admin_qube
from insula.model.system import PoolConfig, System
from insula.model.volumes import VOLUME_NAMES

_FIELDS = frozenset({"name", "qid", "uuid", "label", "template"})

words = st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789_.-", min_size=1, max_size=12)
printable = st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
any_text = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)
"""Text that UTF-8 can carry, NUL and all."""
feature_names = words | words.map("service.{}".format)
tags = st.text(alphabet="abcdefXYZ012_-", min_size=1, max_size=12)
labels = st.builds(Label, words.map("l{}".format), st.integers(0, 0xFFFFFF), st.integers(9, 500))
pools = st.builds(PoolConfig, words, words, st.dictionaries(words, any_text, max_size=3))


def _is_name(text: str) -> bool:
    try:
        return parse_qube_name(text) != ADMIN_NAME
    except QubesValueError:
        return False


qube_names = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,30}", fullmatch=True).filter(_is_name).map(QubeName)


def property_values(found: PropertyDef, names: list[QubeName]) -> st.SearchStrategy[PropertyValue]:
    """Values of the type of a property; qubes out of ``names``."""
    match found.type:
        case PropertyType.BOOL:
            return st.booleans()
        case PropertyType.INT:
            return st.integers(-(2**63), 2**63 - 1)
        case PropertyType.VM:
            return st.sampled_from(names) | st.none() if found.may_be_none else st.sampled_from(names)
        case PropertyType.STR | PropertyType.LABEL:
            return printable


@st.composite
def systems(draw: st.DrawFn) -> System:
    """A consistent system: all references lead somewhere, all types fit; rules between properties may be broken."""
    names: list[QubeName] = draw(st.lists(qube_names, max_size=6, unique_by=str.lower))
    qids = draw(st.lists(st.integers(1, 10000), min_size=len(names), max_size=len(names), unique=True))
    own_labels = draw(st.lists(labels, max_size=3, unique_by=(lambda label: label.name, lambda label: label.index)))
    own_pools = draw(st.lists(pools, min_size=1, max_size=3, unique_by=lambda pool: pool.name))
    label_names = [*BUILTIN_LABELS, *(label.name for label in own_labels)]
    everybody = [ADMIN_NAME, *names]
    qubes = [admin_qube()]
    for name, qid in zip(names, qids, strict=True):
        klass = draw(st.sampled_from([klass for klass in Klass if klass is not Klass.ADMINVM]))
        qubes.append(
            Qube(
                name=name,
                klass=klass,
                qid=qid,
                uuid=UUID(int=qid + draw(st.integers(0, 1000)) * 2**64),
                label=draw(st.sampled_from(label_names)),
                properties=_properties(draw, klass, everybody),
                features=draw(st.dictionaries(feature_names, printable, max_size=4)),
                tags=draw(st.frozensets(tags, max_size=4)),
                volumes=_volumes(draw, [pool.name for pool in own_pools]),
                notes=draw(any_text),
            )
        )
    return System(
        qubes={qube.name: qube for qube in qubes},
        labels={**BUILTIN_LABELS, **{label.name: label for label in own_labels}},
        pools={pool.name: pool for pool in own_pools},
        properties=_properties(draw, None, everybody),
    )


def _properties(draw: st.DrawFn, klass: Klass | None, names: list[QubeName]) -> dict[str, PropertyValue]:
    known = [definition(klass, name) for name in (global_names() if klass is None else names_for(klass))]
    possible = [found for found in known if found.access is not Access.READ_ONLY and found.name not in _FIELDS]
    chosen = draw(st.lists(st.sampled_from(possible), max_size=5, unique_by=lambda found: found.name))
    values = {found.name: draw(property_values(found, names)) for found in chosen}
    if klass is not None and klass.has_template:
        values["template"] = draw(st.sampled_from(names))
    return values


def _volumes(draw: st.DrawFn, pool_names: list[str]) -> dict[str, VolumeSpec]:
    made: dict[str, VolumeSpec] = {}
    for name in VOLUME_NAMES[: draw(st.integers(0, len(VOLUME_NAMES)))]:
        is_snapshot = draw(st.booleans())
        values: dict[str, Any] = {flag: draw(st.booleans()) for flag in ("rw", "save_on_stop", "ephemeral")}
        made[name] = VolumeSpec(
            name=name,
            pool=draw(st.sampled_from(pool_names)),
            vid=draw(any_text),
            size=draw(st.integers(0, 2**63 - 1)),
            snap_on_start=is_snapshot,
            source=draw(any_text) if is_snapshot else None,
            revisions_to_keep=draw(st.integers(-1, 100)),
            **values,
        )
    return made
