"""Between a :class:`System` and the rows of the state file.

Writing takes the system before and after and touches only what differs; a qube that differs is written as a whole.
Reading rebuilds the system and trusts nothing: :func:`read_system` raises :class:`MalformedState` unless every row
is one that writing could have made.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, fields
from uuid import UUID

from insula.model.block import VolumeSpec
from insula.model.consistency import problems
from insula.model.klass import Klass
from insula.model.labels import Label
from insula.model.names import QubeName
from insula.model.qube import DEFAULT_FIREWALL, PropertyValue, Qube
from insula.model.system import PoolConfig, System
from insula.model.volumes import VOLUME_NAMES
from insula_proto.firewall import Rule, format_rule, parse_rule

MAX_PROBLEMS_SHOWN = 3

_VOLUME_COLUMNS = tuple(field.name for field in fields(VolumeSpec))
_VOLUME_FLAGS = frozenset({"rw", "snap_on_start", "save_on_stop", "ephemeral"})
_KINDS: Mapping[type, str] = {type(None): "none", bool: "bool", int: "int", str: "str"}

Row = tuple[object, ...]


class MalformedState(ValueError):
    """Rows that make no consistent system."""


def write_difference(connection: sqlite3.Connection, old: System | None, new: System) -> None:
    """Change the rows of ``old`` (None: there are none) into those of ``new``. To be called in a transaction.

    Deletions come first, so that a number or a name freed by one qube can be another's in the same change.
    """
    for table, before, after in (
        ("label", _labels(old), _labels(new)),
        ("pool", _pools(old), _pools(new)),
        ("global_property", _globals(old), _globals(new)),
    ):
        _delete(connection, table, "name", _stale(before, after))
    old_qubes = {} if old is None else old.qubes
    changed = [qube for name, qube in new.qubes.items() if old_qubes.get(name) is not qube]
    _delete(connection, "qube", "name", [*(old_qubes.keys() - new.qubes.keys()), *(q.name for q in changed)])
    for table, before, after in (
        ("label", _labels(old), _labels(new)),
        ("pool", _pools(old), _pools(new)),
        ("global_property", _globals(old), _globals(new)),
    ):
        fresh = [name for name in after if before.get(name) != after[name]]
        _insert(connection, table, (after[name] for name in fresh))
        if table == "pool":
            _insert(connection, "pool_option", _pool_options(new.pools[name] for name in fresh))
    for qube in changed:
        _insert_qube(connection, qube)


def read_system(connection: sqlite3.Connection) -> System:
    """Rebuild the system. :raise MalformedState: :raise sqlite3.Error:"""
    try:
        system = System(
            qubes=_read_qubes(connection),
            labels={
                name: Label(name, color, number)
                for name, color, number in connection.execute("SELECT name, color, number FROM label")
            },
            pools=_read_pools(connection),
            properties={
                name: _decode(kind, value)
                for name, kind, value in connection.execute("SELECT name, kind, value FROM global_property")
            },
        )
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedState(f"a row cannot be read: {error}") from error
    wrong = problems(system)
    if wrong:
        raise MalformedState("; ".join(wrong[:MAX_PROBLEMS_SHOWN]))
    return system


# writing


def _labels(system: System | None) -> dict[str, Row]:
    return {} if system is None else {n: (label.name, label.color, label.index) for n, label in system.labels.items()}


def _pools(system: System | None) -> dict[str, Row]:
    """The options are part of the row here so that a change of them is seen."""
    if system is None:
        return {}
    return {n: (pool.name, pool.driver, tuple(sorted(pool.options.items()))) for n, pool in system.pools.items()}


def _globals(system: System | None) -> dict[str, Row]:
    return {} if system is None else {name: (name, *_encode(value)) for name, value in system.properties.items()}


def _stale(before: Mapping[str, Row], after: Mapping[str, Row]) -> list[str]:
    return [name for name, row in before.items() if after.get(name) != row]


def _pool_options(pools: Iterable[PoolConfig]) -> Iterator[Row]:
    for pool in pools:
        for name, value in pool.options.items():
            yield (pool.name, name, value)


def _insert_qube(connection: sqlite3.Connection, qube: Qube) -> None:
    name = qube.name
    _insert(connection, "qube", [(name, str(qube.klass), qube.qid, str(qube.uuid), qube.label, qube.notes)])
    _insert(connection, "qube_property", ((name, p, *_encode(v)) for p, v in qube.properties.items()))
    _insert(connection, "feature", ((name, f, v) for f, v in qube.features.items()))
    _insert(connection, "tag", ((name, tag) for tag in sorted(qube.tags)))
    _insert(connection, "volume", ((name, *astuple(volume)) for volume in qube.volumes.values()))
    if qube.firewall != DEFAULT_FIREWALL:
        rules = enumerate(map(format_rule, qube.firewall))
        _insert(connection, "firewall", ((name, number, rule) for number, rule in rules))
    if not qube.firewall:
        _insert(connection, "firewall_closed", [(name,)])


def _encode(value: PropertyValue) -> tuple[str, PropertyValue]:
    """Kind and value; the exact type, as ``True == 1`` would otherwise make a flag a number."""
    return _KINDS[type(value)], value


_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "label": ("name", "color", "number"),
    "pool": ("name", "driver"),
    "pool_option": ("pool", "name", "value"),
    "global_property": ("name", "kind", "value"),
    "qube": ("name", "klass", "qid", "uuid", "label", "notes"),
    "qube_property": ("qube", "name", "kind", "value"),
    "feature": ("qube", "name", "value"),
    "tag": ("qube", "name"),
    "volume": ("qube", *_VOLUME_COLUMNS),
    "firewall": ("qube", "number", "rule"),
    "firewall_closed": ("qube",),
}


def _insert(connection: sqlite3.Connection, table: str, rows: Iterable[Row]) -> None:
    columns = _COLUMNS[table]
    # Names of tables and columns come from the constant above; values are bound.
    statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608
    connection.executemany(statement, (row[: len(columns)] for row in rows))


def _delete(connection: sqlite3.Connection, table: str, column: str, names: Iterable[str]) -> None:
    connection.executemany(f"DELETE FROM {table} WHERE {column} = ?", ((name,) for name in names))  # noqa: S608


# reading


def _read_qubes(connection: sqlite3.Connection) -> dict[QubeName, Qube]:
    properties = _by_qube(
        (qube, (name, _decode(kind, value)))
        for qube, name, kind, value in connection.execute("SELECT qube, name, kind, value FROM qube_property")
    )
    features = _by_qube(
        (qube, (name, value)) for qube, name, value in connection.execute("SELECT qube, name, value FROM feature")
    )
    tags = _by_qube((qube, (name, name)) for qube, name in connection.execute("SELECT qube, name FROM tag"))
    volumes = _read_volumes(connection)
    firewalls = _read_firewalls(connection)
    qubes: dict[QubeName, Qube] = {}
    for name, klass, qid, uuid, label, notes in connection.execute(
        "SELECT name, klass, qid, uuid, label, notes FROM qube ORDER BY qid"
    ):
        qubes[QubeName(name)] = Qube(
            name=QubeName(name),
            klass=Klass(klass),
            qid=qid,
            uuid=UUID(uuid),
            label=label,
            properties=properties.get(name, {}),
            features={feature: str(value) for feature, value in features.get(name, {}).items()},
            tags=frozenset(tags.get(name, {})),
            volumes=volumes.get(name, {}),
            notes=notes,
            firewall=firewalls.get(name, DEFAULT_FIREWALL),
        )
    return qubes


def _read_firewalls(connection: sqlite3.Connection) -> dict[str, tuple[Rule, ...]]:
    """Rules of the qubes that have others than a new one. :raise FirewallError: a row is no rule."""
    rules: dict[str, tuple[Rule, ...]] = {
        qube: () for (qube,) in connection.execute("SELECT qube FROM firewall_closed")
    }
    for qube, line in connection.execute("SELECT qube, rule FROM firewall ORDER BY qube, number"):
        rules[qube] = (*rules.get(qube, ()), parse_rule(line))
    return rules


def _read_volumes(connection: sqlite3.Connection) -> dict[str, dict[str, VolumeSpec]]:
    """Qube → its volumes in their usual order, which is that of the guest's disks."""
    volumes: dict[str, dict[str, VolumeSpec]] = {}
    statement = f"SELECT qube, {', '.join(_VOLUME_COLUMNS)} FROM volume"  # noqa: S608 - names of a dataclass's fields
    for qube, *values in connection.execute(statement):
        row = dict(zip(_VOLUME_COLUMNS, values, strict=True))
        row |= {flag: _decode("bool", row[flag]) for flag in _VOLUME_FLAGS}
        volumes.setdefault(qube, {})[row["name"]] = VolumeSpec(**row)
    order = VOLUME_NAMES.index
    return {qube: dict(sorted(of_qube.items(), key=lambda item: order(item[0]))) for qube, of_qube in volumes.items()}


def _read_pools(connection: sqlite3.Connection) -> dict[str, PoolConfig]:
    options = _by_qube(
        (pool, (name, value)) for pool, name, value in connection.execute("SELECT pool, name, value FROM pool_option")
    )
    return {
        name: PoolConfig(name, driver, {option: str(value) for option, value in options.get(name, {}).items()})
        for name, driver in connection.execute("SELECT name, driver FROM pool ORDER BY name")
    }


def _by_qube(rows: Iterable[tuple[str, tuple[str, PropertyValue]]]) -> dict[str, dict[str, PropertyValue]]:
    grouped: dict[str, dict[str, PropertyValue]] = {}
    for owner, (name, value) in rows:
        grouped.setdefault(owner, {})[name] = value
    return grouped


def _decode(kind: str, value: PropertyValue) -> PropertyValue:
    """:raise MalformedState: the value is not of its kind."""
    if kind == "bool":
        if value not in (0, 1):
            raise MalformedState(f"{value!a} is not a flag")
        return bool(value)
    if _KINDS[type(value)] != kind:
        raise MalformedState(f"{value!a} is not of kind {kind!a}")
    return value
