"""The schema of the state file, as numbered steps that are never changed once released.

``user_version`` of the file says how many steps it has seen. To change the schema, append a step; a file of an older
version gets the missing ones at the next open, each in one transaction. A file of a newer version is refused (MC-63).

Tables are STRICT, references are foreign keys checked at commit, and a property's value carries its kind, so that the
database itself refuses most of what would not be a :class:`insula.model.system.System`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

APPLICATION_ID = 0x494E534C
"""``INSL`` in the file's header: tells our file from any other database."""

_TYPED_VALUE = "kind TEXT NOT NULL, value ANY"
_KIND_FITS = """
    CHECK (CASE kind
        WHEN 'none' THEN value IS NULL
        WHEN 'bool' THEN value IN (0, 1)
        WHEN 'int' THEN typeof(value) = 'integer'
        WHEN 'str' THEN typeof(value) = 'text'
        ELSE 0 END)
"""
_OF_QUBE = "qube TEXT NOT NULL REFERENCES qube (name) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED"

Migration = tuple[str, ...]
"""Statements of one step."""

MIGRATIONS: tuple[Migration, ...] = (
    (
        """CREATE TABLE label (
            name TEXT NOT NULL PRIMARY KEY, color INTEGER NOT NULL, number INTEGER NOT NULL UNIQUE
        ) STRICT""",
        "CREATE TABLE pool (name TEXT NOT NULL PRIMARY KEY, driver TEXT NOT NULL) STRICT",
        """CREATE TABLE pool_option (
            pool TEXT NOT NULL REFERENCES pool (name) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
            name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (pool, name)
        ) STRICT""",
        f"CREATE TABLE global_property (name TEXT NOT NULL PRIMARY KEY, {_TYPED_VALUE}, {_KIND_FITS}) STRICT",
        """CREATE TABLE qube (
            name TEXT NOT NULL PRIMARY KEY, klass TEXT NOT NULL, qid INTEGER NOT NULL UNIQUE, uuid TEXT NOT NULL UNIQUE,
            label TEXT NOT NULL REFERENCES label (name) DEFERRABLE INITIALLY DEFERRED, notes TEXT NOT NULL
        ) STRICT""",
        f"""CREATE TABLE qube_property (
            {_OF_QUBE}, name TEXT NOT NULL, {_TYPED_VALUE}, PRIMARY KEY (qube, name), {_KIND_FITS}
        ) STRICT""",
        f"CREATE TABLE feature ({_OF_QUBE}, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (qube, name)) STRICT",
        f"CREATE TABLE tag ({_OF_QUBE}, name TEXT NOT NULL, PRIMARY KEY (qube, name)) STRICT",
        f"""CREATE TABLE volume (
            {_OF_QUBE}, name TEXT NOT NULL,
            pool TEXT NOT NULL REFERENCES pool (name) DEFERRABLE INITIALLY DEFERRED,
            vid TEXT NOT NULL, size INTEGER NOT NULL, rw INTEGER NOT NULL, snap_on_start INTEGER NOT NULL,
            save_on_stop INTEGER NOT NULL, source TEXT, revisions_to_keep INTEGER NOT NULL, ephemeral INTEGER NOT NULL,
            PRIMARY KEY (qube, name)
        ) STRICT""",
        "CREATE TABLE machine (qube TEXT NOT NULL PRIMARY KEY, record TEXT NOT NULL CHECK (json_valid(record))) STRICT",
    ),
    (
        # A qube without rows has the rules of a new one: most have, and files of the version before do.
        f"""CREATE TABLE firewall (
            {_OF_QUBE}, number INTEGER NOT NULL, rule TEXT NOT NULL, PRIMARY KEY (qube, number)
        ) STRICT""",
        f"CREATE TABLE firewall_closed ({_OF_QUBE}, PRIMARY KEY (qube)) STRICT",
    ),
)
LATEST = len(MIGRATIONS)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All statements inside are kept, or none. The connection must be in autocommit mode (``isolation_level=None``)."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself after some errors (disk full), and a second time would be an error.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def version_of(connection: sqlite3.Connection) -> int:
    """Steps the file has seen; 0: none, it is empty."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def migrate(connection: sqlite3.Connection, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Run the steps the file has not seen, each in a transaction of its own. :raise sqlite3.Error:"""
    for version in range(version_of(connection), len(migrations)):
        with transaction(connection):
            for statement in migrations[version]:
                connection.execute(statement)
            # Neither value comes from outside, and PRAGMA takes no parameters.
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {version + 1}")


def schema_of(connection: sqlite3.Connection) -> list[tuple[str, str, str | None]]:
    """Everything the file defines, to be compared with what it should."""
    return [
        (str(kind), str(name), sql)
        for kind, name, sql in connection.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY type, name")
    ]


def expected_schema() -> list[tuple[str, str, str | None]]:
    """:func:`schema_of` of a file of the latest version."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        migrate(connection)
        return schema_of(connection)
    finally:
        connection.close()
