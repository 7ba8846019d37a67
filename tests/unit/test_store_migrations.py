import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from insula.store.migrations import LATEST, MIGRATIONS, expected_schema, migrate, schema_of, transaction, version_of


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as opened:
        yield opened


def test_empty_file_gets_every_step(connection: sqlite3.Connection) -> None:
    assert version_of(connection) == 0
    migrate(connection)
    assert version_of(connection) == LATEST
    assert schema_of(connection) == expected_schema()


def test_migrated_file_is_left_alone(connection: sqlite3.Connection) -> None:
    migrate(connection)
    before = connection.total_changes
    migrate(connection)
    assert connection.total_changes == before


def test_older_file_gets_missing_steps_only(connection: sqlite3.Connection) -> None:
    migrate(connection)
    connection.execute("INSERT INTO label VALUES ('red', 1, 1)")
    migrate(connection, [*MIGRATIONS, ("ALTER TABLE label ADD COLUMN note TEXT",)])
    assert version_of(connection) == LATEST + 1
    assert connection.execute("SELECT * FROM label").fetchall() == [("red", 1, 1, None)]


def test_failing_step_leaves_the_version_before(connection: sqlite3.Connection) -> None:
    migrate(connection)
    before = schema_of(connection)
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, [*MIGRATIONS, ("CREATE TABLE a (x)", "CREATE TABLE a (x)")])
    assert version_of(connection) == LATEST
    assert schema_of(connection) == before
    assert not connection.in_transaction


def test_failing_transaction_is_rolled_back(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE a (x)")
    with pytest.raises(KeyError), transaction(connection):
        connection.execute("INSERT INTO a VALUES (1)")
        raise KeyError
    assert connection.execute("SELECT count(*) FROM a").fetchone() == (0,)
    assert not connection.in_transaction


@pytest.mark.parametrize(
    ("kind", "value"),
    [("none", 1), ("bool", 2), ("bool", "1"), ("int", "1"), ("int", None), ("str", 1), ("float", 1.5)],
)
def test_value_not_of_its_kind_is_refused_by_the_database(
    connection: sqlite3.Connection, kind: str, value: object
) -> None:
    migrate(connection)
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute("INSERT INTO global_property VALUES ('x', ?, ?)", (kind, value))
